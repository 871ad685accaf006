/* crypt(3) with yescrypt, as libxcrypt has it. */
#include <crypt.h>
