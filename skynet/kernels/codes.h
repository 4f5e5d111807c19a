// Codes and scales of packed blocks as float32, and what products with them share; see quantised.c.

#ifndef SKYNET_CODES_H
#define SKYNET_CODES_H

#include <stdint.h>
#include <string.h>

#include "blocks.h"
#include "vectors.h"

#define PARTS (BLOCK / LANES)

// Parts of a block that are computed together. Constant numbers of rows and parts let the compiler
// keep all sums in registers.
#define CHUNK(rows) ((rows) == 1 ? PARTS : PARTS / 2)

typedef int32_t words __attribute__((vector_size(LANES * 4), aligned(4)));
typedef uint32_t unsigned_words __attribute__((vector_size(LANES * 4), aligned(4)));
typedef int8_t bytes __attribute__((vector_size(LANES), aligned(1)));
typedef _Float16 halves __attribute__((vector_size(LANES * 2), aligned(2)));

// What a call computes. Of q4, `x` is scaled: see `scale_inputs`.
typedef struct {
  layout form;
  const uint8_t *weights;
  const float *bias, *x, *sums; // sums (rows, groups) of the activations of a group; q4 only
  float *y;
  long rows, outputs, y_stride; // floats from a row of y to the next
} quantised_job;

static inline __attribute__((always_inline)) floats factor(const uint8_t *from, int part,
                                                           int scale_bytes) {
  if (scale_bytes == 4)
    return load((const float *)from + part * LANES);
  halves value;
  memcpy(&value, from + part * sizeof value, sizeof value);
  return __builtin_convertvector(value, floats);
}

static inline __attribute__((always_inline)) floats code_q8(const uint8_t *codes, int part) {
  bytes value;
  memcpy(&value, codes + part * sizeof value, sizeof value);
  return __builtin_convertvector(__builtin_convertvector(value, words), floats);
}

static inline __attribute__((always_inline)) words word_q4(const uint8_t *codes, int part) {
  words value;
  memcpy(&value, codes + part * sizeof value, sizeof value);
  return value;
}

// Input k of a word, times 16^k: no shift but for the last, which would reach the sign. To put codes
// into the mantissa of 2^23 and subtract that, for all or some k, takes longer on AMD Zen.
static inline __attribute__((always_inline)) floats code_q4(words word, int k) {
  if (k == WORD_INPUTS - 1)
    return __builtin_convertvector((words)((unsigned_words)word >> 4 * k), floats);
  return __builtin_convertvector(word & (15 << 4 * k), floats);
}

// What undoes the power of 16 of `code_q4`.
static const float FACTORS[WORD_INPUTS] = {0x1p0f,   0x1p-4f,  0x1p-8f,  0x1p-12f,
                                           0x1p-16f, 0x1p-20f, 0x1p-24f, 1.0f};

// Outputs of one block for `rows` rows from `row` on, of a weight with groups of at most MAX_UNPACKED
// inputs; see unpacked.c. It takes less time from MIN_UNPACKED rows on.
#define MIN_UNPACKED (2 * MAX_ROWS + 1)
#define MAX_UNPACKED 128
#define MANY_ROWS 36 // a multiple of any MAX_ROWS
void multiply_many(const quantised_job *the, long block, long row, long rows);

#endif
