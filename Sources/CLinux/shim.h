/* What the Glibc module of Swift leaves out. */
#include <arpa/nameser.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <resolv.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/un.h>
