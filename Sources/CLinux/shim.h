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

/* Privileges, as the C library has no call for them that Swift can make. */
#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <pwd.h>
#include <sys/prctl.h>

/* Hidden behind _GNU_SOURCE. Both change all threads of the process. */
extern int setresuid(uid_t real, uid_t effective, uid_t saved);
extern int setresgid(gid_t real, gid_t effective, gid_t saved);

extern int capset(struct __user_cap_header_struct *header, const struct __user_cap_data_struct *data);

/* Nothing that the calling thread or its children execute gets a capability. Without effect where the thread may not
   change the set. */
static inline void ssmtp_give_up_bounding_set(void) {
  for (int number = 0; prctl(PR_CAPBSET_READ, number, 0, 0, 0) >= 0; number++) prctl(PR_CAPBSET_DROP, number, 0, 0, 0);
}

/* Takes every other capability from the calling thread: ambient, permitted, effective and inheritable. Returns 0 or an
   errno. */
static inline int ssmtp_give_up_capabilities(void) {
  struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct none[2] = {{0, 0, 0}, {0, 0, 0}};
  prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
  return capset(&header, none) == 0 ? 0 : errno;
}

static inline int ssmtp_set_no_new_privileges(void) { return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 ? 0 : errno; }

static inline int ssmtp_set_dumpable(int isDumpable) { return prctl(PR_SET_DUMPABLE, isDumpable, 0, 0, 0) == 0 ? 0 : errno; }
