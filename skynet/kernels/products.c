// Products of float32 activations with bfloat16 weights, in float32: y = x W^T + b.
//
// A weight is packed into blocks of 32 outputs: block b holds, for each input i, the 32 weights
// W[32 b + j, i]. The lanes of a vector are outputs, so that no sum crosses lanes, and a block is
// read from memory once, in order. Two weights share 32 bits: output j the low half, output 16 + j
// the high half; a bfloat16 number becomes float32 by a shift or a mask.
//
#include <stdint.h>
#include <string.h>

#include "pool.h"
#include "vectors.h"

#define BLOCK 32
#define PARTS (BLOCK / 2 / LANES)
#define AHEAD 64 // inputs between the weights in use and those being prefetched

#if LANES == 16
#define MAX_ROWS 4
#elif LANES == 8
#define MAX_ROWS 3
#else
#define MAX_ROWS 2
#endif

typedef uint32_t pairs __attribute__((vector_size(LANES * 4), aligned(4)));

// One block of outputs for ROWS rows of x. Rows of x and y are `x_stride` and `y_stride` floats
// apart; `bias` has a float for each output of the block.
#define DEFINE_BLOCK(ROWS)                                                                         \
  static void block_##ROWS(const uint16_t *weights, const float *bias, const float *x,             \
                           long x_stride, float *y, long y_stride, long inputs) {                  \
    floats low[ROWS][PARTS], high[ROWS][PARTS];                                                    \
    for (int row = 0; row < ROWS; row++)                                                           \
      for (int part = 0; part < PARTS; part++) {                                                   \
        low[row][part] = load(bias + part * LANES);                                                \
        high[row][part] = load(bias + BLOCK / 2 + part * LANES);                                   \
      }                                                                                            \
    for (long input = 0; input < inputs; input++) {                                                \
      const uint16_t *column = weights + input * BLOCK;                                            \
      __builtin_prefetch(column + AHEAD * BLOCK, 0, 3);                                            \
      floats low_weights[PARTS], high_weights[PARTS];                                              \
      for (int part = 0; part < PARTS; part++) {                                                   \
        pairs packed;                                                                              \
        memcpy(&packed, column + part * 2 * LANES, sizeof packed);                                 \
        low_weights[part] = (floats)(packed << 16);                                                \
        high_weights[part] = (floats)(packed & 0xffff0000u);                                       \
      }                                                                                            \
      for (int row = 0; row < ROWS; row++) {                                                       \
        float value = x[row * x_stride + input];                                                   \
        for (int part = 0; part < PARTS; part++) {                                                 \
          low[row][part] += low_weights[part] * value;                                             \
          high[row][part] += high_weights[part] * value;                                           \
        }                                                                                          \
      }                                                                                            \
    }                                                                                              \
    for (int row = 0; row < ROWS; row++)                                                           \
      for (int part = 0; part < PARTS; part++) {                                                   \
        memcpy(y + row * y_stride + part * LANES, &low[row][part], sizeof(floats));                \
        memcpy(y + row * y_stride + BLOCK / 2 + part * LANES, &high[row][part], sizeof(floats));   \
      }                                                                                            \
  }

DEFINE_BLOCK(1)
DEFINE_BLOCK(2)
#if MAX_ROWS > 2
DEFINE_BLOCK(3)
#endif
#if MAX_ROWS > 3
DEFINE_BLOCK(4)
#endif

typedef void (*block_function)(const uint16_t *, const float *, const float *, long, float *, long,
                               long);
static const block_function BLOCKS[MAX_ROWS + 1] = {
    0,       block_1, block_2,
#if MAX_ROWS > 2
    block_3,
#endif
#if MAX_ROWS > 3
    block_4,
#endif
};

// What a call computes.
typedef struct {
  const uint16_t *weights;
  const float *bias, *x;
  float *y;
  long rows, inputs, outputs; // x (rows, inputs) is contiguous
  long y_stride;              // floats from a row of y to the next
} job;

static void multiply_block(const void *argument, long block) {
  const job *the = argument;
  const uint16_t *weights = the->weights + block * BLOCK * the->inputs;
  const float *bias = the->bias + block * BLOCK;
  float *y = the->y + block * BLOCK;
  long width = the->outputs - block * BLOCK;
  float edge[MAX_ROWS * BLOCK]; // of the last block, which y may lack room for
  for (long row = 0; row < the->rows; row += MAX_ROWS) {
    long rows = the->rows - row < MAX_ROWS ? the->rows - row : MAX_ROWS;
    const float *x = the->x + row * the->inputs;
    if (width >= BLOCK) {
      BLOCKS[rows](weights, bias, x, the->inputs, y + row * the->y_stride, the->y_stride,
                   the->inputs);
    } else {
      BLOCKS[rows](weights, bias, x, the->inputs, edge, BLOCK, the->inputs);
      for (long i = 0; i < rows; i++)
        memcpy(y + (row + i) * the->y_stride, edge + i * BLOCK, width * sizeof(float));
    }
  }
}

// y (rows, outputs) = x (rows, inputs) W^T + bias; `bias` has a float for each output of all blocks.
void skynet_product(const uint16_t *weights, const float *bias, const float *x, float *y, long rows,
                    long inputs, long outputs, long y_stride, int threads) {
  job the = {weights, bias, x, y, rows, inputs, outputs, y_stride};
  long blocks = (outputs + BLOCK - 1) / BLOCK;
  run_blocks(multiply_block, &the, blocks, threads);
}

// Float32 weights of blocks [first, first + blocks): `out` is (inputs, blocks x 32).
void skynet_unpack(const uint16_t *weights, float *out, long inputs, long first, long blocks) {
  for (long block = 0; block < blocks; block++)
    for (long input = 0; input < inputs; input++) {
      const uint16_t *column = weights + ((first + block) * inputs + input) * BLOCK;
      float *to = out + (input * blocks + block) * BLOCK;
      for (int part = 0; part < PARTS; part++) {
        pairs packed;
        memcpy(&packed, column + part * 2 * LANES, sizeof packed);
        floats low = (floats)(packed << 16), high = (floats)(packed & 0xffff0000u);
        memcpy(to + part * LANES, &low, sizeof low);
        memcpy(to + BLOCK / 2 + part * LANES, &high, sizeof high);
      }
    }
}
