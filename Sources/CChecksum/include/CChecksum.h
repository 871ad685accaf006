#pragma once
#include <stddef.h>
#include <stdint.h>

/// CRC-32C (Castagnoli, RFC 3720 appendix B.4) of `count` bytes behind those that gave `crc`; begin with 0.
uint32_t ssmtp_crc32c(uint32_t crc, const void *bytes, size_t count);
