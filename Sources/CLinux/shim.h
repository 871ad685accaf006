/* What the Glibc module of Swift leaves out. */
#include <arpa/nameser.h>
#include <malloc.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <resolv.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/fsuid.h>
#include <sys/un.h>

/* Hidden behind _GNU_SOURCE, which must not be defined beside Swift's own view of these headers. */
extern int accept4(int descriptor, struct sockaddr *address, socklen_t *length, int flags);
