// pq-run: generates text from a prompt, or chats, on any legal number of ranks.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <random>

#include "app/chat.h"
#include "app/model_loading.h"
#include "app/rank_memory.h"
#include "app/options.h"
#include "app/plan.h"
#include "app/text_run.h"
#include "base/activity.h"
#include "base/error.h"
#include "base/file.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/signals.h"
#include "base/utf8.h"
#include "engine/generation_config.h"

namespace pq {
namespace {

struct RunOptions {
  ModelFlags model;
  JobOptions job;
  std::string help;
  std::optional<std::string> prompt;
  std::string prompt_path;
  TextRunOptions text;
  bool chat = false;
  bool raw = false;
  std::optional<bool> think;
  std::string system;
  std::optional<double> temperature, top_p, min_p, repeat_penalty;
  std::optional<int64_t> top_k;
  SamplingOptions penalties;
  int64_t seed = -1;
  bool plan = false;
  int64_t plan_ranks = 0;
};

RunOptions parse(int argc, char** argv) {
  RunOptions o;
  const auto app = make_command_line("pq-run", "-m DIR [-p TEXT] [FLAGS]      mpirun -np N pq-run -m DIR ...",
                                     "Generates text, or chats when standard input is a terminal and no prompt is given.");
  add_model_flags(app.get(), &o.model);
  app->option_defaults()->group("Prompt");
  app->add_option("-p,--prompt", o.prompt, "text to continue; without it: chat, or all of a piped stdin")->type_name("TEXT");
  app->add_option("-f,--file", o.prompt_path, "as -p, from a file; one final newline is dropped")->type_name("FILE");
  app->add_option("-n,--predict", o.text.max_tokens, "tokens to generate; -1: until a stop token or a full context")
      ->type_name("N")
      ->check(CLI::Range(int64_t{-1}, int64_t{1} << 40))
      ->capture_default_str();
  app->add_flag("--chat", o.chat, "chat format: -p is one turn, else each line of stdin is one");
  app->add_flag("--raw", o.raw, "(-no-cnv) no chat, even at a terminal");
  app->add_option("--system-prompt", o.system, "(-sys) of a chat")->type_name("TEXT");
  app->add_flag_function(
      "--think,!--no-think", [&](int64_t count) { o.think = count > 0; }, "reasoning in a chat, or not [the model's default]");
  app->option_defaults()->group("Sampling (defaults: generation_config.json of the model)");
  app->add_option("--temp", o.temperature, "temperature; 0: always the most likely token")->type_name("X");
  app->add_option("--top-k", o.top_k, "the k most likely; 0: all")->type_name("N");
  app->add_option("--top-p", o.top_p, "the most likely that reach this probability")->type_name("X");
  app->add_option("--min-p", o.min_p, "at least this part of the most likely one's probability")->type_name("X");
  app->add_option("--repeat-penalty", o.repeat_penalty, "divides logits of recent tokens; 1: none")->type_name("X");
  app->add_option("--presence-penalty", o.penalties.presence_penalty, "off logits of recent tokens")
      ->type_name("X")
      ->capture_default_str();
  app->add_option("--frequency-penalty", o.penalties.frequency_penalty, "the same for each occurrence")
      ->type_name("X")
      ->capture_default_str();
  app->add_option("--repeat-last-n", o.penalties.penalty_last_n, "tokens that count as recent; -1: all")
      ->type_name("N")
      ->capture_default_str();
  app->add_option("-s,--seed", o.seed, "of the draws; -1: a new one each time")
      ->type_name("N")
      ->check(CLI::Range(int64_t{-1}, std::numeric_limits<int64_t>::max()))
      ->capture_default_str();
  app->option_defaults()->group("Other");
  app->add_flag("--plan", o.plan, "show partition and memory, load nothing; also for a config.json");
  app->add_option("--ranks", o.plan_ranks, "to plan for [those started]")->type_name("N")->check(CLI::Range(1, 4096));
  add_job_flags(app.get(), &o.job);
  app->add_flag("--json", o.text.json, "results as JSON");
  app->add_flag("--logits-hash", o.text.logits_hash, "one hash over the logits of all positions");
  const auto text =
      parse_command_line(app.get(), argc, argv, {{"-sys", "--system-prompt"}, {"-no-cnv", "--raw"}, {"-cnv", "--chat"}});
  o.help = text.value_or("");
  if (!o.help.empty()) return o;

  if (o.prompt && !o.prompt_path.empty()) throw Error(ErrorKind::usage, "-p and -f both give the prompt; use one of them");
  if (o.chat && o.raw) throw Error(ErrorKind::usage, "--chat and --raw contradict each other");
  if (o.plan_ranks > 0 && !o.plan) throw Error(ErrorKind::usage, "--ranks belongs to --plan; mpirun -np N starts N ranks");
  SamplingOptions trial = o.penalties;
  trial.temperature = o.temperature.value_or(0);
  trial.top_k = o.top_k.value_or(0);
  trial.top_p = o.top_p.value_or(1);
  trial.min_p = o.min_p.value_or(0);
  trial.repeat_penalty = o.repeat_penalty.value_or(1);
  check(trial);
  return o;
}

// Flags win over what the model recommends.
SamplingOptions sampling_options(const RunOptions& o, const SamplingOptions& recommended) {
  SamplingOptions sampling = o.penalties;
  sampling.temperature = o.temperature.value_or(recommended.temperature);
  sampling.top_k = o.top_k.value_or(recommended.top_k);
  sampling.top_p = o.top_p.value_or(recommended.top_p);
  sampling.min_p = o.min_p.value_or(recommended.min_p);
  sampling.repeat_penalty = o.repeat_penalty.value_or(recommended.repeat_penalty);
  sampling.seed = o.seed >= 0 ? static_cast<uint64_t>(o.seed) : std::random_device{}();
  return sampling;
}

// A launcher gives rank 0 a pipe for the terminal; launch/pq says so.
bool stdin_is_terminal() { return isatty(STDIN_FILENO) == 1 || std::getenv("PQ_STDIN_IS_TERMINAL") != nullptr; }

// What rank 0 knows besides the model.
struct Text {
  std::optional<Tokenizer> tokenizer;
  GenerationConfig generation;
  ChatSettings chat;
  bool chatting = false;
  std::optional<std::string> prompt;  // absent: stdin
};

void warn_of_invalid_utf8(const std::string& text) {
  if (replace_invalid_utf8(text) != text) log_line("the prompt is not valid UTF-8; each invalid part is read as U+FFFD");
}

std::vector<int32_t> prompt_tokens(const Text& text, const std::string& prompt) {
  warn_of_invalid_utf8(prompt);
  return text.chatting ? first_turn_tokens(text.chat, *text.tokenizer, prompt) : text.tokenizer->encode(prompt);
}

// Everything about text that can be refused before the weights are read.
Text prepare_text(const RunOptions& o, const Model& model) {
  Text text;
  text.prompt = o.prompt;
  if (!o.prompt_path.empty()) {
    text.prompt = read_text_file(o.prompt_path, kMaxTextBytes);
    if (!text.prompt->empty() && text.prompt->back() == '\n') text.prompt->pop_back();
  }
  const bool terminal = stdin_is_terminal();
  text.chatting = o.chat || (!o.raw && !text.prompt && terminal);
  if (!text.chatting && (!o.system.empty() || o.think)) {
    throw Error(ErrorKind::usage, "--system-prompt, --think and --no-think belong to a chat; add --chat");
  }
  text.tokenizer = load_tokenizer(model.path);
  if (text.tokenizer->vocab_size() > model.config.vocab) {
    throw Error(ErrorKind::input, fmt::format("{}: tokenizer.json has {} tokens but the model has {} rows", model.path,
                                              text.tokenizer->vocab_size(), model.config.vocab));
  }
  text.generation = load_generation_config(model.path);
  if (text.chatting) {
    text.chat.format = load_chat_format(model.path);
    text.chat.system = o.system;
    text.chat.thinking = o.think;
    text.chat.interactive = terminal && !text.prompt;
  }
  if (text.prompt) {
    const auto tokens = static_cast<int64_t>(prompt_tokens(text, *text.prompt).size());
    if (tokens == 0) throw Error(ErrorKind::usage, "the prompt is empty; give at least one character");
    if (tokens > model.runtime.context) {
      throw Error(ErrorKind::usage,
                  fmt::format("the prompt has {} tokens but the context holds {}; shorten it or start with a larger -c", tokens,
                              model.runtime.context));
    }
  }
  return text;
}

void speak(const RunOptions& o, Session& session, Model& model, const Text& text, std::vector<RankMemory> memory) {
  StepLeader leader(session, *model.transformer);
  Generator generator(leader.runner(), model.runtime, model.config.vocab);
  const SamplingOptions sampling = sampling_options(o, text.generation.sampling);
  Sampler sampler(sampling, text.tokenizer->vocab_size());
  TextRun run(generator, *text.tokenizer, sampler, stop_ids(model.config.eos_ids, text.generation), o.text, model,
              std::move(memory));
  if (text.chatting) {
    Chat chat(text.chat, *text.tokenizer, run);
    if (text.prompt) {
      chat.say(*text.prompt);
    } else {
      chat.loop();
    }
  } else if (text.prompt) {
    const StopModeScope mode(StopMode::finish);
    run.generate(text.tokenizer->encode(*text.prompt), "");
  } else {
    log_line("reading the prompt from standard input; --chat makes each line a turn");
    std::string prompt;
    {
      const IdleScope for_the_prompt;
      prompt = read_stream(std::cin, "the prompt on standard input", kMaxTextBytes);
    }
    const StopModeScope mode(StopMode::finish);
    run.generate(prompt_tokens(text, prompt), "");
  }
  log_line(run.summary() + (sampling.temperature > 0 ? fmt::format(", seed {}", sampling.seed) : ""));
  if (o.text.logits_hash) log_line("logits hash " + run.hash_text());
}

int run(Session& session, int argc, char** argv) {
  RunOptions o;
  session.agree("the command line", [&] { o = parse(argc, argv); });
  session.configure(o.job);
  std::string report = o.help;
  if (o.plan) {
    session.agree("the plan", [&] {
      const int ranks = o.plan_ranks > 0 ? static_cast<int>(o.plan_ranks) : session.ranks();
      if (session.rank() == 0) report = plan_report(o.model, ranks, o.text.json);
    });
  }
  if (o.plan || !report.empty()) {
    if (session.rank() == 0) std::fputs(report.c_str(), stdout);
    return 0;
  }

  Model model = open_model(session, o.model);
  Text text;
  session.agree("the text files of the model", [&] {
    if (session.rank() == 0) text = prepare_text(o, model);
  });
  load_model(session, &model);
  log_once(fmt::format("{}, {} {} ({}), {}; {}, {:.3f} bits per weight", model.backend->name(), session.ranks(),
                       session.ranks() == 1 ? "rank" : "ranks", session.comm().name(), model_text(model.config),
                       model.source->description(), bits_per_weight(model.config, *model.source)));
  const std::vector<RankMemory> memory = gather_memory(session, model);
  log_memory(memory, model.load_seconds);
  const StopModeScope mode(session.rank() == 0 ? StopMode::at_once : StopMode::follow);
  int code = 0;
  if (session.rank() == 0) {
    speak(o, session, model, text, memory);
    if (stop_signal() != 0) code = stop_exit_code(stop_signal());
  } else {
    follow_steps(session, *model.transformer);
  }
  session.comm().broadcast(&code, sizeof code);
  if (code != 0) session.end_together(code);
  return 0;
}

}  // namespace
}  // namespace pq

int main(int argc, char** argv) {
  return pq::run_program("pq-run", argc, argv, [&](pq::Session& session) { return pq::run(session, argc, argv); });
}
