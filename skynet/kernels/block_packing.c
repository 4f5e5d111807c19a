// Packing of quantised weights for the products, and back.
//
// A row of blocks (groups x block) has for each group its codes, its scale and, in q4, its minimum.
// They go to the records of quantised.c: scales, minimums and codes of 32 outputs, and of the codes
// `unit` bytes of an output stay together. Outputs past the last one are zeros.
#include <stdint.h>
#include <string.h>

#include "blocks.h"
#include "pool.h"

typedef struct {
  layout form;
  uint8_t *rows, *packed;
  long outputs, unit;
  int unpacks;
} job;

static inline __attribute__((always_inline)) void copy(int unpacks, uint8_t *row, uint8_t *packed,
                                                       long size) {
  memcpy(unpacks ? row : packed, unpacks ? packed : row, size);
}

// `count` units of each output, `packed` together.
static inline __attribute__((always_inline)) void transpose(int unpacks, uint8_t *rows, long stride,
                                                            long outputs, uint8_t *packed,
                                                            long count, long unit) {
  for (long at = 0; at < count; at++)
    for (long output = 0; output < outputs; output++)
      copy(unpacks, rows + output * stride + at * unit, packed + (at * BLOCK + output) * unit,
           unit);
}

static inline __attribute__((always_inline)) void move(int unpacks, const job *the, long block) {
  layout form = the->form;
  long record = record_bytes(form), groups = form.inputs / form.group, of_block = record / BLOCK;
  long rest = the->outputs - block * BLOCK, outputs = rest < BLOCK ? rest : BLOCK;
  long factors = factor_bytes(form) / BLOCK, codes = of_block - factors, stride = groups * of_block;
  uint8_t *rows = the->rows + block * BLOCK * stride, *packed = the->packed + block * groups * record;
  for (long at = 0; at < groups; at++, rows += of_block, packed += record) {
    uint8_t *to = packed + factors * BLOCK;
    if (form.scale_bytes == 2)
      transpose(unpacks, rows + codes, stride, outputs, packed, factors / 2, 2);
    else
      transpose(unpacks, rows + codes, stride, outputs, packed, factors / 4, 4);
    if (the->unit == 1)
      transpose(unpacks, rows, stride, outputs, to, codes, 1);
    else
      transpose(unpacks, rows, stride, outputs, to, codes / 4, 4);
  }
}

static void move_block(const void *argument, long block) {
  const job *the = argument;
  if (the->unpacks)
    move(1, the, block);
  else
    move(0, the, block);
}

// Between rows of blocks (outputs, groups, block) and records (blocks of 32 outputs, groups, record);
// unit: 1 or 4. `packed` holds zeros.
void skynet_pack_blocks(uint8_t *rows, uint8_t *packed, long outputs, long inputs, long group,
                        int is_q4, int scale_bytes, int unit, int unpacks, int threads) {
  layout form = {inputs, group, is_q4, scale_bytes};
  job the = {form, rows, packed, outputs, unit, unpacks};
  run_blocks(move_block, &the, (outputs + BLOCK - 1) / BLOCK, threads);
}
