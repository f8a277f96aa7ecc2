// chat_template.jinja, which is asked one question, and the same text as a message and as a generated answer.
#include "fuzz/fuzz_support.h"
#include "text/chat_template.h"

using namespace pq;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text = fuzz::text_of(data, size);
  fuzz::accepts([&] { detect_chat_format(text, "chat_template.jinja"); });
  for (const bool in_reasoning : {false, true}) {
    const SplitAnswer split = split_answer(text, in_reasoning);
    fuzz::expect(split.reasoning.size() + split.answer.size() <= text.size(), "an answer grew");
  }
  fuzz::accepts([&] {
    const std::vector<Segment> segments = render_chat(
        {{.role = "user", .content = text}, {.role = "assistant", .content = text}, {.role = "user", .content = "x"}}, {});
    for (const Segment& segment : segments)
      if (segment.is_control) fuzz::expect(segment.text.size() < 256, "a message became control text");
  });
  return 0;
}
