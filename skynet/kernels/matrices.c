// Products of many rows: float32 activations times one block of float32 weights.
//
// Each number of a result is a sum over the inputs in their order, from the bias on, as in
// products.c: its bits depend neither on the number of rows nor on the threads.

#include <string.h>

#include "matrices.h"
#include "pool.h"

#define BLOCK 32
#define INPUTS 256       // of a part of the block whose weights stay in the first cache
#define ROW_BYTES 196608 // of x that stay in the second cache

// What a call computes.
typedef struct {
  const float *weights, *bias, *x; // weights (blocks, inputs, BLOCK)
  float *y;
  long rows, inputs, outputs, y_stride;
  long together; // rows of a task
  long blocks;
} job;

// Some rows times one block.
static void multiply_block(const void *argument, long task) {
  const job *the = argument;
  long first_row = task / the->blocks * the->together, block = task % the->blocks;
  long last_row = first_row + the->together < the->rows ? first_row + the->together : the->rows;
  // Once without inputs, too: the result is then the bias.
  for (long input = 0; input == 0 || input < the->inputs; input += INPUTS) {
    long inputs = the->inputs - input < INPUTS ? the->inputs - input : INPUTS;
    for (long at = block * BLOCK; at < (block + 1) * BLOCK && at < the->outputs; at += PANEL) {
      const float *weights = the->weights + (block * the->inputs + input) * BLOCK + at % BLOCK;
      const float *start = input ? 0 : the->bias + at;
      long width = the->outputs - at < PANEL ? the->outputs - at : PANEL;
      for (long row = first_row; row < last_row; row += ROWS) {
        long rows = last_row - row < ROWS ? last_row - row : ROWS;
        const float *x = the->x + row * the->inputs + input;
        float *y = the->y + row * the->y_stride + at;
        if (width == PANEL) {
          multiply_rows(rows, weights, BLOCK, start, x, the->inputs, y, the->y_stride, inputs);
          continue;
        }
        float edge[ROWS * PANEL] = {0}; // y lacks room for a whole panel
        for (long each = 0; each < rows; each++)
          memcpy(edge + each * PANEL, y + each * the->y_stride, width * sizeof(float));
        multiply_rows(rows, weights, BLOCK, start, x, the->inputs, edge, PANEL, inputs);
        for (long each = 0; each < rows; each++)
          memcpy(y + each * the->y_stride, edge + each * PANEL, width * sizeof(float));
      }
    }
  }
}

// y (rows, outputs) = x (rows, inputs) times weights (outputs / BLOCK, inputs, BLOCK), plus bias,
// which has a float for each output of all blocks. Rows of y are `y_stride` floats apart.
void skynet_multiply(const float *weights, const float *bias, const float *x, float *y, long rows,
                     long inputs, long outputs, long y_stride, int threads) {
  long together = ROW_BYTES / (long)sizeof(float) / (inputs ? inputs : 1) / ROWS * ROWS;
  together = together < ROWS ? ROWS : together;
  long blocks = (outputs + BLOCK - 1) / BLOCK;
  job the = {weights, bias, x, y, rows, inputs, outputs, y_stride, together, blocks};
  run_blocks(multiply_block, &the, (rows + together - 1) / together * blocks, threads);
}
