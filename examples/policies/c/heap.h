// The heap of a policy: it grows during a call, and the policy says what of it stays.
//
// Most policies need no more, for the host allocates only what it hands over: a config, or a list of
// endpoints.
#pragma once

#include <stddef.h>

// Where the heap begins: where whatever outlives a call is moved to.
void *heap_start(void);

// Gives up everything but the first bytes.
void heap_keep(size_t bytes);
