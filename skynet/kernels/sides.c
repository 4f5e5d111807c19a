// Consecutive sides of layers in a decoding step: the operations of each, the sum of the shards'
// partials over direct links, and what follows the sum. One call from Python runs them all.
#include <stdint.h>
#include <string.h>

#include "exchange.h"
#include "steps.h"

// From the hidden states, buffer 0, to this shard's partial, buffer 1; then, with the sum in buffer
// 1, to the next hidden states, in buffer 0.
typedef struct {
  const call *before, *after;
  long num_before, num_after;
} side;

// The sums of a run of sides, by the links to all peers.
typedef struct {
  Link *links;
  uint8_t *head; // of a message; the position of the sum in it counts on
  float *total;  // room for a sum
  int64_t head_bytes, position_at, count; // count: floats of a sum
  double spin_s, waited_s; // waited_s counts on
  int32_t num_links, shard;
} sums;

static void run_calls(const call *calls, long count, const step *the_step) {
  for (long at = 0; at < count; at++)
    calls[at].run(calls[at].arguments, the_step);
}

// 1: buffer 1 has the sum; 0: its partial, and Python goes on.
static int sum_partials(sums *the, step *the_step) {
  double started = now_s();
  int done = skynet_sum_over_links(the->links, the->num_links, the->shard, the->head,
                                   the->head_bytes, the_step->buffers[1], the->count, the->total,
                                   the->spin_s);
  the->waited_s += now_s() - started;
  if (!done)
    return 0;
  uint32_t position; // all machines of a plan are little-endian, see frame.py
  memcpy(&position, the->head + the->position_at, sizeof position);
  position++;
  memcpy(the->head + the->position_at, &position, sizeof position);
  the_step->buffers[1] = the->total;
  return 1;
}

// Run sides on the hidden states `x`, in place; via: 0 for the only shard of a stage. Returns how
// many are done. The sum of the one after those is left to Python, and `partial` is its partial.
long skynet_run_sides(const side *sides, long count, step *the_step, float *x, float *partial,
                      sums *via) {
  for (long at = 0; at < count; at++) {
    the_step->buffers[0] = x;
    the_step->buffers[1] = partial;
    run_calls(sides[at].before, sides[at].num_before, the_step);
    if (via && !sum_partials(via, the_step))
      return at;
    run_calls(sides[at].after, sides[at].num_after, the_step);
  }
  return count;
}
