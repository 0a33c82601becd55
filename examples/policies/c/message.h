// A line of text for the operator, put together piece by piece. What does not fit is cut off.
#pragma once

#include <stddef.h>
#include <stdint.h>

struct message {
  size_t length;
  uint8_t text[256];
};

static inline void append_bytes(struct message *message, const uint8_t *bytes, size_t length) {
  for (size_t i = 0; i < length && message->length < sizeof message->text; i++) {
    message->text[message->length++] = bytes[i];
  }
}

static inline void append(struct message *message, const char *text) {
  size_t length = 0;
  while (text[length] != 0) length++;
  append_bytes(message, (const uint8_t *)text, length);
}

static inline void append_number(struct message *message, uint32_t number) {
  if (number >= 10) append_number(message, number / 10);
  uint8_t digit = (uint8_t)('0' + number % 10);
  append_bytes(message, &digit, 1);
}
