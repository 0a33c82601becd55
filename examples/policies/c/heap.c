#include "heap.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define PAGE_BYTES 65536u
// As much as any type of the interface asks for.
#define ALIGNMENT 8u

// Where the linker says that nothing else lies any more.
extern unsigned char __heap_base;

static size_t used;

void *heap_start(void) {
  return (void *)(((uintptr_t)&__heap_base + ALIGNMENT - 1) & ~(uintptr_t)(ALIGNMENT - 1));
}

void heap_keep(size_t bytes) { used = (bytes + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1); }

// What the generated glue calls. There is no record of sizes: what grows is copied as if it had been
// as long before.
void *realloc(void *old, size_t bytes) {
  if (bytes > SIZE_MAX / 2) return NULL;
  unsigned char *fresh = (unsigned char *)heap_start() + used;
  size_t end = (size_t)fresh + bytes;
  size_t there = __builtin_wasm_memory_size(0) * PAGE_BYTES;
  if (end > there) {
    size_t pages = (end - there + PAGE_BYTES - 1) / PAGE_BYTES;
    if (__builtin_wasm_memory_grow(0, pages) == SIZE_MAX) return NULL;
  }
  heap_keep(used + bytes);
  if (old != NULL) memcpy(fresh, old, bytes);
  return fresh;
}

// The policy says what stays: see `heap_keep`.
void free(void *pointer) { (void)pointer; }
