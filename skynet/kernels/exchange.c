// The sum of a small partial over direct links, in one call: sends this shard's message to every
// peer, polls for theirs, and adds in shard order. Only for what goes as it should: whatever does
// not (a socket that is full, another message, the end of a link, a late peer) is left to Python,
// with the bytes sent and received so far.

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "exchange.h"

#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0
#endif

double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// Send head and data; 1 if the socket took all.
static int send_all(Link *link, const uint8_t *head, int64_t head_bytes, const uint8_t *data,
                    int64_t data_bytes) {
    struct iovec parts[2] = {{(void *)head, (size_t)head_bytes}, {(void *)data, (size_t)data_bytes}};
    struct msghdr message;
    memset(&message, 0, sizeof message);
    message.msg_iov = parts;
    message.msg_iovlen = 2;
    ssize_t sent = sendmsg(link->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    link->sent = sent > 0 ? sent : 0;
    return sent == head_bytes + data_bytes;
}

// 1: the whole message is there, 0: not yet, -1: something else.
static int receive(Link *link, const uint8_t *head, int64_t head_bytes, int64_t bytes) {
    ssize_t size = recv(link->fd, link->buffer + link->received, (size_t)(bytes - link->received),
                        MSG_DONTWAIT);
    if (size == 0) return -1;
    if (size < 0) return 0;  // an error comes again, in Python
    link->received += size;
    int64_t known = link->received < head_bytes ? link->received : head_bytes;
    if (memcmp(link->buffer, head, (size_t)known)) return -1;
    return link->received == bytes;
}

static void add(float *restrict total, const float *restrict part, int64_t count) {
    for (int64_t i = 0; i < count; i++) total[i] += part[i];
}

int skynet_sum_over_links(Link *links, int32_t num_links, int32_t shard, const uint8_t *head,
                          int64_t head_bytes, const float *data, int64_t count, float *total,
                          double spin_s) {
    int64_t data_bytes = count * (int64_t)sizeof(float), bytes = head_bytes + data_bytes;
    int complete = 1;
    for (int32_t i = 0; i < num_links; i++) {
        links[i].received = 0;
        complete &= send_all(&links[i], head, head_bytes, (const uint8_t *)data, data_bytes);
    }
    if (!complete) return 0;
    double until = now_s() + spin_s;
    for (int32_t waiting = num_links;;) {
        for (int32_t i = 0; i < num_links; i++) {
            if (links[i].received == bytes) continue;
            int got = receive(&links[i], head, head_bytes, bytes);
            if (got < 0) return 0;
            waiting -= got;
        }
        if (!waiting) break;
        if (now_s() >= until) return 0;
        sched_yield();
    }
    int first = 1;
    for (int32_t at = 0, i = 0; at <= num_links; at++) {
        int mine = i == num_links || (at == shard);
        const float *part = mine ? data : (const float *)(links[i].buffer + head_bytes);
        if (!mine) i++;
        if (first) memcpy(total, part, (size_t)data_bytes);
        else add(total, part, count);
        first = 0;
    }
    return 1;
}
