// Products of float32 activations with weights that are numbers, in float32: y = x W^T + b.
//
// A weight is packed into blocks of 32 outputs: block b holds, for each input i, the 32 weights
// W[32 b + j, i]. The lanes of a vector are outputs, so that no sum crosses lanes, and a block is
// read from memory once, in order. Of bfloat16, two weights share 32 bits: output j the low half,
// output 16 + j the high half, so that a number becomes float32 by a shift or a mask.
//
#include <stdint.h>
#include <string.h>

#include "numbers.h"
#include "pool.h"
#include "vectors.h"

#define PARTS (BLOCK / LANES)
#define AHEAD 4096 // bytes between the weights in use and those being prefetched
#define LINE 64    // bytes that are prefetched at a time
#define ALWAYS static inline __attribute__((always_inline))

typedef uint32_t pairs __attribute__((vector_size(LANES * 4), aligned(4)));
typedef _Float16 halves __attribute__((vector_size(LANES * 2), aligned(2)));

// What a call computes.
typedef struct {
  const uint8_t *weights;
  const float *bias, *x; // `bias` has a float for each output of all blocks
  float *y;
  long rows, inputs, outputs; // x (rows, inputs) is contiguous
  long y_stride;              // floats from a row of y to the next
  int number;
} job;

// The weights of one input, by outputs.
ALWAYS void load_column(int number, const uint8_t *column, floats weights[PARTS]) {
  if (number == BFLOAT16) {
    UNROLLED for (int part = 0; part < PARTS / 2; part++) {
      pairs packed;
      memcpy(&packed, column + part * sizeof packed, sizeof packed);
      weights[part] = (floats)(packed << 16);
      weights[PARTS / 2 + part] = (floats)(packed & 0xffff0000u);
    }
    return;
  }
  UNROLLED for (int part = 0; part < PARTS; part++) {
    if (number == FLOAT16) {
      halves packed;
      memcpy(&packed, column + part * sizeof packed, sizeof packed);
      weights[part] = __builtin_convertvector(packed, floats);
    } else {
      weights[part] = load((const float *)column + part * LANES);
    }
  }
}

// One block of outputs for `rows` rows of x. Constant arguments let the compiler keep all sums in
// registers.
ALWAYS void multiply(int rows, int number, const job *the, long block, const float *x, float *y,
                     long y_stride) {
  long inputs = the->inputs, size = BLOCK * number_bytes(number);
  const uint8_t *weights = the->weights + block * inputs * size;
  const float *bias = the->bias + block * BLOCK;
  floats sums[MAX_ROWS][PARTS];
  UNROLLED for (int row = 0; row < rows; row++)
    UNROLLED for (int part = 0; part < PARTS; part++)
      sums[row][part] = load(bias + part * LANES);
  for (long input = 0; input < inputs; input++) {
    const uint8_t *column = weights + input * size;
    UNROLLED for (long line = 0; line < size; line += LINE)
      __builtin_prefetch(column + AHEAD + line, 0, 3);
    floats of_input[PARTS];
    load_column(number, column, of_input);
    UNROLLED for (int row = 0; row < rows; row++) {
      float value = x[row * inputs + input];
      UNROLLED for (int part = 0; part < PARTS; part++)
        sums[row][part] += of_input[part] * value;
    }
  }
  UNROLLED for (int row = 0; row < rows; row++)
    UNROLLED for (int part = 0; part < PARTS; part++)
      memcpy(y + row * y_stride + part * LANES, &sums[row][part], sizeof(floats));
}

typedef void (*block_function)(const job *, long, const float *, float *, long);

#define DEFINE_BLOCK(NUMBER, ROWS)                                                                 \
  static void multiply_##NUMBER##_##ROWS(const job *the, long block, const float *x, float *y,     \
                                         long y_stride) {                                          \
    multiply(ROWS, NUMBER, the, block, x, y, y_stride);                                            \
  }
#define DEFINE_ROWS(ROWS)                                                                          \
  DEFINE_BLOCK(BFLOAT16, ROWS) DEFINE_BLOCK(FLOAT16, ROWS) DEFINE_BLOCK(FLOAT32, ROWS)

DEFINE_ROWS(1)
DEFINE_ROWS(2)
#if MAX_ROWS > 2
DEFINE_ROWS(3)
#endif
#if MAX_ROWS > 3
DEFINE_ROWS(4)
#define ALL_ROWS(NUMBER)                                                                           \
  { 0, multiply_##NUMBER##_1, multiply_##NUMBER##_2, multiply_##NUMBER##_3, multiply_##NUMBER##_4 }
#elif MAX_ROWS > 2
#define ALL_ROWS(NUMBER)                                                                           \
  { 0, multiply_##NUMBER##_1, multiply_##NUMBER##_2, multiply_##NUMBER##_3 }
#else
#define ALL_ROWS(NUMBER) { 0, multiply_##NUMBER##_1, multiply_##NUMBER##_2 }
#endif

static const block_function BLOCKS[NUMBERS][MAX_ROWS + 1] = {ALL_ROWS(BFLOAT16), ALL_ROWS(FLOAT16),
                                                             ALL_ROWS(FLOAT32)};

static void multiply_block(const void *argument, long block) {
  const job *the = argument;
  const block_function *functions = BLOCKS[the->number];
  float *y = the->y + block * BLOCK;
  long width = the->outputs - block * BLOCK;
  float edge[MAX_ROWS * BLOCK]; // of the last block, which y may lack room for
  for (long row = 0; row < the->rows; row += MAX_ROWS) {
    long rows = the->rows - row < MAX_ROWS ? the->rows - row : MAX_ROWS;
    const float *x = the->x + row * the->inputs;
    if (width >= BLOCK) {
      functions[rows](the, block, x, y + row * the->y_stride, the->y_stride);
    } else {
      functions[rows](the, block, x, edge, BLOCK);
      for (long i = 0; i < rows; i++)
        memcpy(y + (row + i) * the->y_stride, edge + i * BLOCK, width * sizeof(float));
    }
  }
}

// y (rows, outputs) = x (rows, inputs) W^T + bias.
void skynet_product(const uint8_t *weights, const float *bias, const float *x, float *y, long rows,
                    long inputs, long outputs, long y_stride, int number, int threads) {
  job the = {weights, bias, x, y, rows, inputs, outputs, y_stride, number};
  run_blocks(multiply_block, &the, (outputs + BLOCK - 1) / BLOCK, threads);
}

typedef struct {
  const uint8_t *weights;
  float *out;
  long inputs, first, blocks;
  int number;
} unpacking;

ALWAYS void unpack(int number, const unpacking *of, long block) {
  long size = BLOCK * number_bytes(number);
  const uint8_t *from = of->weights + (of->first + block) * of->inputs * size;
  for (long input = 0; input < of->inputs; input++) {
    floats column[PARTS];
    load_column(number, from + input * size, column);
    memcpy(of->out + (input * of->blocks + block) * BLOCK, column, sizeof column);
  }
}

static void unpack_block(const void *argument, long block) {
  const unpacking *of = argument;
  if (of->number == BFLOAT16)
    unpack(BFLOAT16, of, block);
  else if (of->number == FLOAT16)
    unpack(FLOAT16, of, block);
  else
    unpack(FLOAT32, of, block);
}

// Float32 weights of blocks [first, first + blocks): `out` is (inputs, blocks x 32).
void skynet_unpack(const uint8_t *weights, float *out, long inputs, long first, long blocks,
                   int number, int threads) {
  unpacking of = {weights, out, inputs, first, blocks, number};
  run_blocks(unpack_block, &of, blocks, threads);
}
