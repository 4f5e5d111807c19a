// How quantised weights are packed; see quantised.c.

#ifndef SKYNET_BLOCKS_H
#define SKYNET_BLOCKS_H

#define BLOCK 32      // outputs that are packed together
#define WORD_INPUTS 8 // q4: inputs that share a word

typedef struct {
  long inputs, group;
  int is_q4, scale_bytes; // 2: float16, 4: float32
} layout;

static inline __attribute__((always_inline)) long factor_bytes(layout form) {
  return BLOCK * form.scale_bytes * (form.is_q4 ? 2 : 1);
}

static inline __attribute__((always_inline)) long record_bytes(layout form) {
  return BLOCK * (form.is_q4 ? form.group / 2 : form.group) + factor_bytes(form);
}

#endif
