// How weights that are numbers are packed; see products.c.

#ifndef SKYNET_NUMBERS_H
#define SKYNET_NUMBERS_H

#define BLOCK 32 // outputs

enum { BFLOAT16, FLOAT16, FLOAT32, NUMBERS }; // of weights

static inline __attribute__((always_inline)) long number_bytes(int number) {
  return number == FLOAT32 ? 4 : 2;
}

#endif
