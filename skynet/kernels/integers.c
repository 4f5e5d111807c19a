// Products of activations rounded to int8 with quantised weights: y = x W^T + b.
//
// Activations are rounded in the groups of the weight's inputs: the largest magnitude of a group of
// a row becomes 127, and the row has a float32 scale for the group. Codes are multiplied as
// integers, whose sums are exact; the sum of each group becomes float32 and is scaled:
//
//   y = sum over groups of x_scale x (scale x (sum of code x x_code) + minimum x (sum of x_code))
//
// Weights are packed as for quantised.c, but that the codes of q8 keep 4 inputs of an output
// together: for each 4 inputs, 32 words. A row is rounded alone and its groups are added in order, so
// that its results have the same bits for any number of rows and threads.
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "blocks.h"
#include "pool.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define EIGHT 8 // lanes of a vector, each an output
#define PARTS (BLOCK / EIGHT)
#define MAX_ROWS 4 // that are multiplied with codes while these are in registers
#define MAX_CODE 127
#define LEAST 0x03800000   // bits of 2^-120: groups of smaller numbers count as zeros
#define INFINITE 0x7f800000 // bits of infinity; those of NaN are larger
#define AHEAD 2048         // bytes between the codes in use and those being prefetched
#define SHARED 16384       // numbers whose rounding is worth waking other threads for
#define UNROLLED _Pragma("clang loop unroll(full)")
#define INLINE static inline __attribute__((always_inline))

typedef float floats __attribute__((vector_size(EIGHT * 4), aligned(4)));
typedef int32_t ints __attribute__((vector_size(EIGHT * 4), aligned(4)));
typedef uint32_t words __attribute__((vector_size(EIGHT * 4), aligned(4)));
typedef _Float16 halves __attribute__((vector_size(EIGHT * 2), aligned(2)));
typedef int8_t bytes __attribute__((vector_size(EIGHT), aligned(1)));

// What a call computes. `codes` are those of x (rows, inputs), with the order of `round_group`;
// `scales` and `sums` (rows, groups): of a group its scale, and the sum of its rounded activations.
typedef struct {
  layout form;
  const uint8_t *weights;
  const float *bias, *x;
  int8_t *codes;
  float *scales, *sums, *y;
  long rows, outputs, y_stride;
} job;

// Rounding.

// Codes of a group, its scale and the sum of what they stand for. q4: of 8 inputs those of even
// number come first, as the codes of a word do when it is divided into low and high halves of bytes.
static void round_group(const float *x, long group, int is_q4, int8_t *codes, float *scale,
                        float *sum) {
  ints largest = {0};
  for (long at = 0; at < group; at += EIGHT) {
    ints bits;
    memcpy(&bits, x + at, sizeof bits);
    largest = __builtin_elementwise_max(largest, bits & 0x7fffffff);
  }
  int32_t bits = 0;
  for (int lane = 0; lane < EIGHT; lane++)
    bits = largest[lane] > bits ? largest[lane] : bits;
  if (bits < LEAST || bits >= INFINITE) {
    memset(codes, 0, group);
    *scale = *sum = bits < LEAST ? 0 : NAN; // not finite, and so is all that is made with it
    return;
  }
  float magnitude;
  memcpy(&magnitude, &bits, sizeof magnitude);
  float inverse = MAX_CODE / magnitude;
  ints total = {0};
  for (long at = 0; at < group; at += EIGHT) {
    floats value;
    memcpy(&value, x + at, sizeof value);
    ints code = __builtin_convertvector(__builtin_elementwise_rint(value * inverse), ints);
    total += code;
    if (is_q4)
      code = __builtin_shufflevector(code, code, 0, 2, 4, 6, 1, 3, 5, 7);
    bytes narrow = __builtin_convertvector(code, bytes);
    memcpy(codes + at, &narrow, sizeof narrow);
  }
  int32_t all = 0;
  for (int lane = 0; lane < EIGHT; lane++)
    all += total[lane];
  *scale = magnitude / MAX_CODE;
  *sum = *scale * (float)all;
}

static void round_row(const void *argument, long row) {
  const job *the = argument;
  long group = the->form.group, groups = the->form.inputs / group;
  for (long at = 0; at < groups; at++) {
    long first = row * the->form.inputs + at * group, of = row * groups + at;
    round_group(the->x + first, group, the->form.is_q4, the->codes + first, the->scales + of,
                the->sums + of);
  }
}

// Sums of codes times activations' codes: for each lane those of one output.

INLINE words load_words(const uint8_t *from) {
  words value;
  memcpy(&value, from, sizeof value);
  return value;
}

#if defined(__AVX2__)

INLINE __m256i four(const int8_t *codes) {
  int32_t word;
  memcpy(&word, codes, sizeof word);
  return _mm256_set1_epi32(word);
}

// Up to 4 words, of 8 inputs each: sums of int16 hold 15 x 127 x 16.
INLINE void multiply_q4(int rows, int parts, long count, const uint8_t *from, const int8_t *x,
                        long x_stride, ints sums[MAX_ROWS][PARTS]) {
  const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  __m256i narrow[MAX_ROWS][PARTS];
  UNROLLED for (int row = 0; row < rows; row++)
    UNROLLED for (int part = 0; part < parts; part++)
      narrow[row][part] = _mm256_setzero_si256();
  for (long word = 0; word < count; word++, from += BLOCK * 4, x += WORD_INPUTS) {
    __builtin_prefetch(from + AHEAD, 0, 3);
    __builtin_prefetch(from + AHEAD + 64, 0, 3);
    UNROLLED for (int part = 0; part < parts; part++) {
      __m256i codes = (__m256i)load_words(from + part * EIGHT * 4);
      __m256i even = _mm256_and_si256(codes, low);
      __m256i odd = _mm256_and_si256(_mm256_srli_epi32(codes, 4), low);
      UNROLLED for (int row = 0; row < rows; row++) {
        __m256i sum = _mm256_add_epi16(_mm256_maddubs_epi16(even, four(x + row * x_stride)),
                                       _mm256_maddubs_epi16(odd, four(x + row * x_stride + 4)));
        narrow[row][part] = _mm256_add_epi16(narrow[row][part], sum);
      }
    }
  }
  UNROLLED for (int row = 0; row < rows; row++)
    UNROLLED for (int part = 0; part < parts; part++)
      sums[row][part] += (ints)_mm256_madd_epi16(narrow[row][part], ones);
}

// Up to 8 words, of 4 inputs each. The sign of a code goes to the activation: the magnitude of -128
// is a byte without sign, and 2 x 128 x 127 is an int16.
INLINE void multiply_q8(int rows, int parts, long count, const uint8_t *from, const int8_t *x,
                        long x_stride, ints sums[MAX_ROWS][PARTS]) {
  const __m256i ones = _mm256_set1_epi16(1);
  for (long word = 0; word < count; word++, from += BLOCK * 4, x += 4) {
    __builtin_prefetch(from + AHEAD, 0, 3);
    __builtin_prefetch(from + AHEAD + 64, 0, 3);
    UNROLLED for (int part = 0; part < parts; part++) {
      __m256i codes = (__m256i)load_words(from + part * EIGHT * 4);
      __m256i magnitudes = _mm256_abs_epi8(codes);
      UNROLLED for (int row = 0; row < rows; row++) {
        __m256i values = _mm256_sign_epi8(four(x + row * x_stride), codes);
        __m256i pairs = _mm256_maddubs_epi16(magnitudes, values);
        sums[row][part] += (ints)_mm256_madd_epi16(pairs, ones);
      }
    }
  }
}

#else

INLINE void multiply_q4(int rows, int parts, long count, const uint8_t *from, const int8_t *x,
                        long x_stride, ints sums[MAX_ROWS][PARTS]) {
  for (long word = 0; word < count; word++, from += BLOCK * 4, x += WORD_INPUTS)
    UNROLLED for (int part = 0; part < parts; part++) {
      words codes = load_words(from + part * EIGHT * 4);
      UNROLLED for (int input = 0; input < 4; input++) {
        ints even = (ints)(codes >> 8 * input & 15), odd = (ints)(codes >> (8 * input + 4) & 15);
        UNROLLED for (int row = 0; row < rows; row++)
          sums[row][part] += even * x[row * x_stride + input] + odd * x[row * x_stride + 4 + input];
      }
    }
}

INLINE void multiply_q8(int rows, int parts, long count, const uint8_t *from, const int8_t *x,
                        long x_stride, ints sums[MAX_ROWS][PARTS]) {
  for (long word = 0; word < count; word++, from += BLOCK * 4, x += 4)
    UNROLLED for (int part = 0; part < parts; part++) {
      words codes = load_words(from + part * EIGHT * 4);
      UNROLLED for (int input = 0; input < 4; input++) {
        ints code = (ints)(codes << (24 - 8 * input)) >> 24;
        UNROLLED for (int row = 0; row < rows; row++)
          sums[row][part] += code * x[row * x_stride + input];
      }
    }
}

#endif

INLINE floats factor(const uint8_t *from, int part, int scale_bytes) {
  if (scale_bytes == 4) {
    floats value;
    memcpy(&value, from + part * sizeof value, sizeof value);
    return value;
  }
  halves value;
  memcpy(&value, from + part * sizeof value, sizeof value);
  return __builtin_convertvector(value, floats);
}

// Outputs of a block that are computed together: as many as leave registers for the rows.
#define CHUNK(rows) ((rows) < 3 ? PARTS : PARTS / 2)

// One block of outputs for `rows` rows from `row` on.
INLINE void multiply(int rows, int is_q4, int scale_bytes, const job *the, long block, long row,
                     float *y, long y_stride) {
  long inputs = the->form.inputs, group = the->form.group, groups = inputs / group;
  long record = record_bytes(the->form), run = 32 / (is_q4 ? WORD_INPUTS : 4);
  long words_of_group = group / (is_q4 ? WORD_INPUTS : 4);
  const uint8_t *weights = the->weights + block * groups * record;
  const float *scales = the->scales + row * groups, *x_sums = the->sums + row * groups;
  int parts = CHUNK(rows);
  floats total[MAX_ROWS][PARTS];
  UNROLLED for (int part = 0; part < PARTS; part++) {
    memcpy(&total[0][part], the->bias + block * BLOCK + part * EIGHT, sizeof(floats));
    UNROLLED for (int each = 1; each < rows; each++)
      total[each][part] = total[0][part];
  }
  for (long at = 0; at < groups; at++, weights += record) {
    const uint8_t *codes = weights + factor_bytes(the->form);
    const int8_t *x = the->codes + row * inputs + at * group;
    UNROLLED for (int first = 0; first < PARTS; first += parts) {
      ints sums[MAX_ROWS][PARTS];
      UNROLLED for (int each = 0; each < rows; each++)
        UNROLLED for (int part = 0; part < parts; part++)
          sums[each][part] = (ints){0};
      for (long word = 0; word < words_of_group; word += run) {
        long rest = words_of_group - word;
        const uint8_t *from = codes + (word * BLOCK + first * EIGHT) * 4;
        const int8_t *values = x + word * (is_q4 ? WORD_INPUTS : 4);
        if (is_q4 && rest >= run) // constant counts let the compiler unroll
          multiply_q4(rows, parts, 32 / WORD_INPUTS, from, values, inputs, sums);
        else if (is_q4)
          multiply_q4(rows, parts, rest, from, values, inputs, sums);
        else if (rest >= run)
          multiply_q8(rows, parts, 32 / 4, from, values, inputs, sums);
        else
          multiply_q8(rows, parts, rest, from, values, inputs, sums);
      }
      UNROLLED for (int part = 0; part < parts; part++) {
        floats scale = factor(weights, first + part, scale_bytes), minimum = scale;
        if (is_q4)
          minimum = factor(weights + BLOCK * scale_bytes, first + part, scale_bytes);
        UNROLLED for (int each = 0; each < rows; each++) {
          floats sum = __builtin_convertvector(sums[each][part], floats);
          floats both = scale * scales[each * groups + at], *result = &total[each][first + part];
          *result = __builtin_elementwise_fma(sum, both, *result);
          if (is_q4)
            *result = __builtin_elementwise_fma(
                minimum, (floats){0} + x_sums[each * groups + at], *result);
        }
      }
    }
  }
  UNROLLED for (int each = 0; each < rows; each++)
    UNROLLED for (int part = 0; part < PARTS; part++)
      memcpy(y + each * y_stride + part * EIGHT, &total[each][part], sizeof(floats));
}

typedef void (*block_function)(const job *, long, long, float *, long);

#define DEFINE_BLOCK(ROWS, BITS, SCALE)                                                            \
  static void q##BITS##_##SCALE##_##ROWS(const job *the, long block, long row, float *y,           \
                                         long y_stride) {                                          \
    multiply(ROWS, BITS == 4, SCALE, the, block, row, y, y_stride);                                \
  }
#define DEFINE_ROWS(BITS, SCALE)                                                                   \
  DEFINE_BLOCK(1, BITS, SCALE)                                                                     \
  DEFINE_BLOCK(2, BITS, SCALE)                                                                     \
  DEFINE_BLOCK(3, BITS, SCALE)                                                                     \
  DEFINE_BLOCK(4, BITS, SCALE)
#define ALL_ROWS(BITS, SCALE)                                                                      \
  { 0, q##BITS##_##SCALE##_1, q##BITS##_##SCALE##_2, q##BITS##_##SCALE##_3, q##BITS##_##SCALE##_4 }

DEFINE_ROWS(8, 2)
DEFINE_ROWS(8, 4)
DEFINE_ROWS(4, 2)
DEFINE_ROWS(4, 4)

// [is_q4][float32 scales][rows]
static const block_function BLOCKS[2][2][MAX_ROWS + 1] = {{ALL_ROWS(8, 2), ALL_ROWS(8, 4)},
                                                          {ALL_ROWS(4, 2), ALL_ROWS(4, 4)}};

static void multiply_block(const void *argument, long block) {
  const job *the = argument;
  const block_function *functions = BLOCKS[the->form.is_q4][the->form.scale_bytes == 4];
  long width = the->outputs - block * BLOCK;
  float edge[MAX_ROWS * BLOCK]; // of the last block, which y may lack room for
  for (long row = 0; row < the->rows; row += MAX_ROWS) {
    long rows = the->rows - row < MAX_ROWS ? the->rows - row : MAX_ROWS;
    float *y = the->y + row * the->y_stride + block * BLOCK;
    if (width >= BLOCK) {
      functions[rows](the, block, row, y, the->y_stride);
    } else {
      functions[rows](the, block, row, edge, BLOCK);
      for (long each = 0; each < rows; each++)
        memcpy(y + each * the->y_stride, edge + each * BLOCK, width * sizeof(float));
    }
  }
}

// Arguments and result as of `skynet_quantised_product`.
int skynet_integer_product(const uint8_t *weights, const float *bias, const float *x, float *y,
                           long rows, long inputs, long outputs, long y_stride, long group,
                           int is_q4, int scale_bytes, int threads) {
  long groups = rows * (inputs / group);
  float *scales = malloc(groups * 2 * sizeof(float) + rows * inputs);
  if (!scales)
    return 1;
  int8_t *codes = (int8_t *)(scales + groups * 2);
  layout form = {inputs, group, is_q4, scale_bytes};
  job the = {form, weights, bias, x, codes, scales, scales + groups, y, rows, outputs, y_stride};
  run_blocks(round_row, &the, rows, rows * inputs < SHARED ? 1 : threads);
  run_blocks(multiply_block, &the, (outputs + BLOCK - 1) / BLOCK, threads);
  free(scales);
  return 0;
}
