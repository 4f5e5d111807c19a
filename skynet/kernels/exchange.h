// Sums of small partials over direct links; see exchange.c.

#ifndef SKYNET_EXCHANGE_H
#define SKYNET_EXCHANGE_H

#include <stdint.h>

// A link to a peer; links are in the order of shards.
typedef struct {
    int32_t fd;
    int32_t shard;    // of the peer
    uint8_t *buffer;  // room for a whole message
    int64_t sent;     // bytes of the last message
    int64_t received;
} Link;

// head: of this shard's message, and of every peer's, byte for byte.
// total: where what `data` has is written, summed.
// 1: done; 0: go on in Python.
int skynet_sum_over_links(Link *links, int32_t num_links, int32_t shard, const uint8_t *head,
                          int64_t head_bytes, const float *data, int64_t count, float *total,
                          double spin_s);

double now_s(void);

#endif
