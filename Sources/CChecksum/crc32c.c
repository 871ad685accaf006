/* CRC-32C: one instruction for eight bytes where the processor has it, a table for one byte elsewhere. */
#include "CChecksum.h"
#include <string.h>

static uint32_t table_step(uint32_t crc, const uint8_t *p, size_t n) {
  static uint32_t table[256];
  static int ready;
  if (!__atomic_load_n(&ready, __ATOMIC_ACQUIRE)) {
    /* Two threads may both fill the table: with the same values. */
    for (uint32_t i = 0; i < 256; i++) {
      uint32_t c = i;
      for (int k = 0; k < 8; k++) c = c & 1 ? 0x82F63B78u ^ (c >> 1) : c >> 1;
      __atomic_store_n(&table[i], c, __ATOMIC_RELAXED);
    }
    __atomic_store_n(&ready, 1, __ATOMIC_RELEASE);
  }
  while (n--) crc = table[(crc ^ *p++) & 0xff] ^ (crc >> 8);
  return crc;
}

#if defined(__x86_64__)
#include <nmmintrin.h>
__attribute__((target("sse4.2"))) static uint32_t fast_step(uint32_t crc, const uint8_t *p, size_t n) {
  uint64_t c = crc, word;
  for (; n >= 8; p += 8, n -= 8) {
    memcpy(&word, p, 8);
    c = _mm_crc32_u64(c, word);
  }
  for (; n; p++, n--) c = _mm_crc32_u8((uint32_t)c, *p);
  return (uint32_t)c;
}
static int has_fast_step(void) { return __builtin_cpu_supports("sse4.2"); }
#elif defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
static uint32_t fast_step(uint32_t crc, const uint8_t *p, size_t n) {
  uint64_t word;
  for (; n >= 8; p += 8, n -= 8) {
    memcpy(&word, p, 8);
    crc = __crc32cd(crc, word);
  }
  for (; n; p++, n--) crc = __crc32cb(crc, *p);
  return crc;
}
static int has_fast_step(void) { return 1; }
#else
static uint32_t fast_step(uint32_t crc, const uint8_t *p, size_t n) { return table_step(crc, p, n); }
static int has_fast_step(void) { return 0; }
#endif

uint32_t ssmtp_crc32c(uint32_t crc, const void *bytes, size_t count) {
  return ~(has_fast_step() ? fast_step : table_step)(~crc, bytes, count);
}
