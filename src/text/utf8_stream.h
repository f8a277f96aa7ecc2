// Turns the bytes of successive tokens into text that can be shown at once. A token may end inside a character; the stream
// holds such a tail back until it is complete. Which bytes a token has is left to tokenizer.h.
#pragma once

#include <string>
#include <string_view>

namespace pq {

// The concatenated results of push and finish are replace_invalid_utf8 of the concatenated input, however it is cut.
// One stream serves one sequence; not thread-safe.
class Utf8Stream {
 public:
  // Takes any bytes and returns the text that has become certain: valid UTF-8, possibly empty. At most 3 bytes stay behind.
  // Bytes that can no longer become a character come out as U+FFFD.
  std::string push(std::string_view bytes);

  // Ends the sequence: a held tail comes out as one U+FFFD. The stream is then empty and may be used again.
  std::string finish();

 private:
  std::string held_;
};

}  // namespace pq
