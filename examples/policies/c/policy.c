// The power of two choices, in C.
//
// Of two endpoints drawn at random, the one with fewer flows per weight: `plugins/p2c` is the same
// policy in Rust, and both give the same answers. `chooser.h` is generated from `policy.wit`.

#include "chooser.h"
#include "heap.h"
#include "message.h"

// More choices than this are a scan, which a least-flows policy does better.
#define CHOICES_MAX 16

static uint32_t choices = 2;

// The weights, by the endpoint's index. They are the only thing on the heap that outlives a call.
static uint32_t *weights;
static uint32_t endpoint_count;

// --- configure -----------------------------------------------------------------------------------

// The config that has not been read yet. It is JSON that the host has checked: `null`, or an object.
struct config {
  const uint8_t *at;
  const uint8_t *end;
};

static bool take(struct config *config, uint8_t expected) {
  while (config->at < config->end && *config->at <= ' ') config->at++;
  if (config->at == config->end || *config->at != expected) return false;
  config->at++;
  return true;
}

// Reads a string without escapes, for there is none in any key that is known.
static bool take_string(struct config *config, const uint8_t **string, size_t *length) {
  if (!take(config, '"')) return false;
  *string = config->at;
  while (config->at < config->end && *config->at != '"') config->at++;
  *length = (size_t)(config->at - *string);
  return take(config, '"');
}

// Reads a whole number of at most nine digits, which fits.
static bool take_number(struct config *config, uint32_t *number) {
  const uint8_t *begin = config->at;
  *number = 0;
  while (config->at < config->end && *config->at >= '0' && *config->at <= '9') {
    *number = *number * 10 + (uint32_t)(*config->at++ - '0');
  }
  bool is_whole = config->at == config->end || *config->at == ',' || *config->at == '}';
  return config->at > begin && config->at - begin < 10 && is_whole;
}

static bool is(const uint8_t *string, size_t length, const char *expected) {
  for (size_t i = 0; i < length; i++) {
    // A shorter one ends in a zero, which is in no key.
    if (expected[i] == 0 || string[i] != (uint8_t)expected[i]) return false;
  }
  return expected[length] == 0;
}

// Reads one `"choices": N`, or says what is wrong with it.
static bool read_entry(struct config *config, struct message *error) {
  const uint8_t *key;
  size_t length;
  if (!take_string(config, &key, &length) || !take(config, ':')) {
    append(error, "expected an object");
    return false;
  }
  if (!is(key, length, "choices")) {
    append(error, "unknown key `");
    append_bytes(error, key, length);
    append(error, "`, expected `choices`");
    return false;
  }
  uint32_t number;
  bool is_number = take_number(config, &number);
  if (is_number && number >= 1 && number <= CHOICES_MAX) {
    choices = number;
    return true;
  }
  append(error, "choices: expected 1 to 16, found ");
  if (is_number) {
    append_number(error, number);
  } else {
    append(error, "something else");
  }
  return false;
}

bool exports_chooser_configure(chooser_string_t *json, chooser_string_t *err) {
  static struct message error;
  struct config config = {json->ptr, json->ptr + json->len};
  if (is(json->ptr, json->len, "null")) return true;
  if (!take(&config, '{')) {
    append(&error, "expected an object");
  } else if (take(&config, '}')) {
    return true;
  } else if (read_entry(&config, &error)) {
    if (take(&config, '}')) return true;
    append(&error, "expected nothing but `choices`");
  }
  err->ptr = error.text;
  err->len = error.length;
  return false;
}

// --- endpoints-changed ---------------------------------------------------------------------------

void exports_chooser_endpoints_changed(uint64_t generation, chooser_list_endpoint_t *endpoints) {
  (void)generation;
  endpoint_count = (uint32_t)endpoints->len;
  weights = heap_start();
  // The list lies above the old weights, and an endpoint is larger than a weight: going up, no
  // weight is written over one that has not been read.
  for (uint32_t i = 0; i < endpoint_count; i++) weights[i] = endpoints->ptr[i].weight;
  heap_keep(endpoint_count * sizeof(uint32_t));
}

// --- decide --------------------------------------------------------------------------------------

// SplitMix64 (Steele, Lea and Flood 2014).
static uint64_t next_bits(uint64_t *state) {
  uint64_t bits = *state += 0x9e3779b97f4a7c15u;
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
  return bits ^ (bits >> 31);
}

// An index below `count`, each equally likely: the upper half of a product of 64 by 32 bits
// (Lemire 2019), in two steps, since wasm32 has no wider multiplication.
static uint32_t below(uint64_t *state, uint32_t count) {
  uint64_t bits = next_bits(state);
  uint64_t low = (bits & 0xffffffffu) * count;
  return (uint32_t)(((bits >> 32) * count + (low >> 32)) >> 32);
}

// What cannot be drawn any more, in ascending order.
struct taken {
  uint32_t count;
  uint32_t indices[CHOICES_MAX + 1];
};

// Takes the nth of the indices that are not taken.
static uint32_t take_nth(struct taken *taken, uint32_t index) {
  uint32_t place = 0;
  while (place < taken->count && taken->indices[place] <= index) {
    index++;
    place++;
  }
  for (uint32_t i = taken->count++; i > place; i--) taken->indices[i] = taken->indices[i - 1];
  taken->indices[place] = index;
  return index;
}

void exports_chooser_decide(chooser_flow_t *flow, chooser_decision_t *decision) {
  struct taken taken = {0};
  // A lone endpoint is tried again: nothing else is left.
  if (flow->avoid < endpoint_count && endpoint_count > 1) take_nth(&taken, flow->avoid);

  uint64_t random = flow->random;
  uint64_t best_flows = 0;
  uint64_t best_weight = 0;
  uint32_t best = 0;
  for (uint32_t drawn = 0; drawn < choices && taken.count < endpoint_count; drawn++) {
    uint32_t index = take_nth(&taken, below(&random, endpoint_count - taken.count));
    // What it would have with the new flow, so that idle endpoints are told apart by weight.
    uint64_t flows = (uint64_t)pointsman_policy_host_load(index) + 1;
    // Flows per weight are compared by products: neither factor exceeds 2³².
    if (best_weight == 0 || flows * best_weight < best_flows * weights[index]) {
      best = index;
      best_flows = flows;
      best_weight = weights[index];
    }
  }
  *decision = (chooser_decision_t){
      .verdict = best_weight > 0 ? POINTSMAN_POLICY_TYPES_VERDICT_FORWARD
                                 : POINTSMAN_POLICY_TYPES_VERDICT_DEFER,
      .endpoint = best,
      .scope = POINTSMAN_POLICY_TYPES_SCOPE_FLOW,
  };
}
