// Products of float32 activations with quantised weights, in float32: y = x W^T + b.
//
// A weight is packed into blocks of 32 outputs, whose lanes are outputs as in products.c. A block
// has a record for each group of inputs, read from memory once, in order:
//
//   scales    32 x float16 or float32
//   minimums  the same; q4 only
//   codes     q8: for each input, 32 signed bytes
//             q4: for each 8 inputs, 32 words; input k of the 8 is in bits 4k to 4k + 3
//
// The codes of a group are multiplied as they are; scales and minimums follow once for each group:
// y = sum over groups of scale x (sum of code x activation) + minimum x (sum of activations).
//
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "codes.h"
#include "pool.h"

#define AHEAD 2048 // bytes between the codes in use and those being prefetched

// For `rows` rows of x and CHUNK(rows) parts of a block: the sums over the codes of a group. Inputs
// take turns between two sums, so that an addition need not wait for the one before it.
static inline __attribute__((always_inline)) void
multiply_codes(int rows, int is_q4, const uint8_t *codes, int first, long group, const float *x,
               long x_stride, floats result[MAX_ROWS][PARTS]) {
  int parts = CHUNK(rows);
  floats sums[MAX_ROWS][PARTS][2];
  UNROLLED for (int row = 0; row < rows; row++)
    UNROLLED for (int part = 0; part < parts; part++)
      sums[row][part][0] = sums[row][part][1] = (floats){0};
  for (long input = 0; input < group; input += WORD_INPUTS) {
    const uint8_t *column = codes + input * (is_q4 ? BLOCK / 2 : BLOCK);
    const float *values = x + input;
    words word[PARTS];
    if (is_q4)
      UNROLLED for (int part = 0; part < parts; part++)
        word[part] = word_q4(column, first + part);
    UNROLLED for (int k = 0; k < WORD_INPUTS; k++) {
      if (k % (is_q4 ? 4 : 2) == 0)
        __builtin_prefetch(column + AHEAD + k * (is_q4 ? 16 : 32), 0, 3);
      UNROLLED for (int part = 0; part < parts; part++) {
        floats code =
            is_q4 ? code_q4(word[part], k) : code_q8(column + k * BLOCK, first + part);
        UNROLLED for (int row = 0; row < rows; row++)
          sums[row][part][k % 2] =
              add_product(sums[row][part][k % 2], code, splat(values[row * x_stride + k]));
      }
    }
  }
  UNROLLED for (int row = 0; row < rows; row++)
    UNROLLED for (int part = 0; part < parts; part++)
      result[row][part] = sums[row][part][0] + sums[row][part][1];
}

// One block of outputs for `rows` rows of x. Sums are added in the same order for any number of
// rows, so that a row has the same bits beside others.
static inline __attribute__((always_inline)) void
multiply(int rows, int is_q4, int scale_bytes, const quantised_job *the, long block, const float *x,
         const float *sums_of_x, float *y, long y_stride) {
  long group = the->form.group, groups = the->form.inputs / group;
  long record = record_bytes(the->form), factors = BLOCK * scale_bytes;
  const uint8_t *weights = the->weights + block * groups * record;
  const float *bias = the->bias + block * BLOCK;
  int parts = CHUNK(rows);
  floats total[MAX_ROWS][PARTS];
  UNROLLED for (int row = 0; row < rows; row++)
    UNROLLED for (int part = 0; part < PARTS; part++)
      total[row][part] = load(bias + part * LANES);
  for (long at = 0; at < groups; at++, weights += record) {
    const uint8_t *codes = weights + factors * (is_q4 ? 2 : 1);
    UNROLLED for (int first = 0; first < PARTS; first += parts) {
      floats sums[MAX_ROWS][PARTS];
      multiply_codes(rows, is_q4, codes, first, group, x + at * group, the->form.inputs, sums);
      UNROLLED for (int part = 0; part < parts; part++) {
        floats scale = factor(weights, first + part, scale_bytes);
        floats minimum = is_q4 ? factor(weights + factors, first + part, scale_bytes) : scale;
        UNROLLED for (int row = 0; row < rows; row++) {
          floats *result = &total[row][first + part];
          *result = add_product(*result, scale, sums[row][part]);
          if (is_q4)
            *result = add_product(*result, minimum, splat(sums_of_x[row * groups + at]));
        }
      }
    }
  }
  UNROLLED for (int row = 0; row < rows; row++)
    UNROLLED for (int part = 0; part < PARTS; part++)
      memcpy(y + row * y_stride + part * LANES, &total[row][part], sizeof(floats));
}

typedef void (*block_function)(const quantised_job *, long, const float *, const float *, float *, long);

#define DEFINE_BLOCK(ROWS, BITS, SCALE)                                                            \
  static void q##BITS##_##SCALE##_##ROWS(const quantised_job *the, long block, const float *x,               \
                                         const float *sums, float *y, long y_stride) {             \
    multiply(ROWS, BITS == 4, SCALE, the, block, x, sums, y, y_stride);                            \
  }
#define DEFINE_ROWS(ROWS)                                                                          \
  DEFINE_BLOCK(ROWS, 8, 2)                                                                         \
  DEFINE_BLOCK(ROWS, 8, 4)                                                                         \
  DEFINE_BLOCK(ROWS, 4, 2)                                                                         \
  DEFINE_BLOCK(ROWS, 4, 4)
#define ROWS_OF(BITS, SCALE, ROWS) q##BITS##_##SCALE##_##ROWS

DEFINE_ROWS(1)
DEFINE_ROWS(2)
#if MAX_ROWS > 2
DEFINE_ROWS(3)
#endif
#if MAX_ROWS > 3
DEFINE_ROWS(4)
#define ALL_ROWS(BITS, SCALE)                                                                      \
  { 0, ROWS_OF(BITS, SCALE, 1), ROWS_OF(BITS, SCALE, 2), ROWS_OF(BITS, SCALE, 3),                  \
    ROWS_OF(BITS, SCALE, 4) }
#elif MAX_ROWS > 2
#define ALL_ROWS(BITS, SCALE)                                                                      \
  { 0, ROWS_OF(BITS, SCALE, 1), ROWS_OF(BITS, SCALE, 2), ROWS_OF(BITS, SCALE, 3) }
#else
#define ALL_ROWS(BITS, SCALE)                                                                      \
  { 0, ROWS_OF(BITS, SCALE, 1), ROWS_OF(BITS, SCALE, 2) }
#endif

// [is_q4][float32 scales][rows]
static const block_function BLOCKS[2][2][MAX_ROWS + 1] = {{ALL_ROWS(8, 2), ALL_ROWS(8, 4)},
                                                          {ALL_ROWS(4, 2), ALL_ROWS(4, 4)}};

static void multiply_block(const void *argument, long block) {
  const quantised_job *the = argument;
  if (the->rows >= MIN_UNPACKED && the->form.group <= MAX_UNPACKED) {
    for (long row = 0; row < the->rows; row += MANY_ROWS)
      multiply_many(the, block, row, the->rows - row < MANY_ROWS ? the->rows - row : MANY_ROWS);
    return;
  }
  const block_function *functions = BLOCKS[the->form.is_q4][the->form.scale_bytes == 4];
  long inputs = the->form.inputs, groups = inputs / the->form.group;
  long width = the->outputs - block * BLOCK;
  float *y = the->y + block * BLOCK;
  float edge[MAX_ROWS * BLOCK]; // of the last block, which y may lack room for
  for (long row = 0; row < the->rows; row += MAX_ROWS) {
    long rows = the->rows - row < MAX_ROWS ? the->rows - row : MAX_ROWS;
    const float *x = the->x + row * inputs, *sums = the->sums + row * groups;
    if (width >= BLOCK) {
      functions[rows](the, block, x, sums, y + row * the->y_stride, the->y_stride);
    } else {
      functions[rows](the, block, x, sums, edge, BLOCK);
      for (long i = 0; i < rows; i++)
        memcpy(y + (row + i) * the->y_stride, edge + i * BLOCK, width * sizeof(float));
    }
  }
}

// Activations as q4 needs them: that of input k of a word times 16^-k, which is exact, and the sum
// of each group.
static void scale_inputs(const layout form, const float *x, long rows, float *scaled, float *sums) {
  for (long first = 0; first < rows * form.inputs; first += form.group) {
    float parts[WORD_INPUTS] = {0};
    for (long input = first; input < first + form.group; input += WORD_INPUTS)
      for (int k = 0; k < WORD_INPUTS; k++) {
        scaled[input + k] = x[input + k] * FACTORS[k];
        parts[k] += x[input + k];
      }
    float total = 0;
    for (int k = 0; k < WORD_INPUTS; k++)
      total += parts[k];
    sums[first / form.group] = total;
  }
}

// y (rows, outputs) = x (rows, inputs) W^T + bias; `bias` has a float for each output of all
// blocks, `group` is a multiple of 8. Returns 0, or 1 without memory for a copy of x.
int skynet_quantised_product(const uint8_t *weights, const float *bias, const float *x, float *y,
                             long rows, long inputs, long outputs, long y_stride, long group,
                             int is_q4, int scale_bytes, int threads) {
  layout form = {inputs, group, is_q4, scale_bytes};
  float *scaled = 0;
  quantised_job the = {form, weights, bias, x, x, y, rows, outputs, y_stride};
  if (is_q4) {
    scaled = malloc((rows * inputs + rows * (inputs / group)) * sizeof(float));
    if (!scaled)
      return 1;
    scale_inputs(form, x, rows, scaled, scaled + rows * inputs);
    the.x = scaled;
    the.sums = scaled + rows * inputs;
  }
  run_blocks(multiply_block, &the, (outputs + BLOCK - 1) / BLOCK, threads);
  free(scaled);
  return 0;
}

// Float32 weights of blocks [first, first + blocks): `out` is (inputs, blocks x 32).
void skynet_quantised_unpack(const uint8_t *weights, float *out, long inputs, long first,
                             long blocks, long group, int is_q4, int scale_bytes) {
  layout form = {inputs, group, is_q4, scale_bytes};
  long groups = inputs / group, record = record_bytes(form), factors = BLOCK * scale_bytes;
  for (long block = 0; block < blocks; block++)
    for (long at = 0; at < groups; at++) {
      const uint8_t *from = weights + ((first + block) * groups + at) * record;
      const uint8_t *codes = from + factors * (is_q4 ? 2 : 1);
      for (int part = 0; part < PARTS; part++) {
        floats scale = factor(from, part, scale_bytes);
        floats minimum = is_q4 ? factor(from + factors, part, scale_bytes) : scale;
        for (long input = 0; input < group; input += WORD_INPUTS) {
          words word = {0};
          if (is_q4)
            word = word_q4(codes + input * (BLOCK / 2), part);
          float *to = out + ((at * group + input) * blocks + block) * BLOCK + part * LANES;
          UNROLLED for (int k = 0; k < WORD_INPUTS; k++) {
            floats weight;
            if (is_q4)
              weight = code_q4(word, k) * FACTORS[k] * scale + minimum;
            else
              weight = code_q8(codes + (input + k) * BLOCK, part) * scale;
            memcpy(to + k * blocks * BLOCK, &weight, sizeof weight);
          }
        }
      }
    }
}
