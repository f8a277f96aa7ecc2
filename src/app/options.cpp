// The command lines of options.h, on CLI11.
#include "app/options.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/limits.h"

namespace pq {
namespace {

constexpr size_t kHelpColumn = 32;
constexpr const char* kLastGroup = "Other";

// One line a flag, one line a group, no blank lines: help fits its screen.
class CompactFormatter : public CLI::Formatter {
 public:
  std::string make_help(const CLI::App* app, std::string, CLI::AppFormatMode) const override {
    std::vector<std::string> groups = app->get_groups();
    std::stable_partition(groups.begin(), groups.end(), [](const std::string& group) { return group != kLastGroup; });
    std::string text = app->get_description() + "\n";
    for (const std::string& group : groups) {
      const auto options = app->get_options(
          [&](const CLI::Option* option) { return option->get_group() == group && option != app->get_help_ptr(); });
      if (group.empty() || options.empty()) continue;
      text += group + ":\n";
      for (const CLI::Option* option : options) text += option_line(*option);
    }
    return text;
  }

 private:
  static std::string option_line(const CLI::Option& option) {
    std::string names;
    for (const std::string& name : option.get_snames()) names += (names.empty() ? "-" : ", -") + name;
    for (const std::string& name : option.get_lnames()) names += (names.empty() ? "--" : ", --") + name;
    if (names.empty()) names = option.get_name();
    // What follows a colon describes the checks, in the words of CLI11.
    const std::string type = option.get_type_name();
    if (!type.empty()) names += " " + type.substr(0, type.find(':'));
    std::string line = "  " + names;
    line.resize(std::max(kHelpColumn, line.size() + 1), ' ');
    line += option.get_description();
    if (!option.get_default_str().empty()) line += " [" + option.get_default_str() + "]";
    return line + "\n";
  }
};

int64_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<int64_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = static_cast<int64_t>(j);
  for (size_t i = 1; i <= a.size(); ++i) {
    int64_t diagonal = row[0];
    row[0] = static_cast<int64_t>(i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const int64_t replaced = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row.back();
}

std::string suggestion(const CLI::App& app, const std::string& word) {
  std::string nearest;
  int64_t best = std::max<int64_t>(2, static_cast<int64_t>(word.size()) / 3) + 1;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) {
      const std::string known = "--" + name;
      const bool abbreviated = word.size() > 3 && (known.rfind(word, 0) == 0 || word.rfind(known, 0) == 0);
      const int64_t distance = abbreviated ? 1 : edit_distance(word, known);
      if (distance < best) {
        best = distance;
        nearest = known;
      }
    }
  }
  return nearest.empty() ? "" : ", did you mean " + nearest + "?";
}

// Flags whose type is one of these hold numbers. CLI11 takes "nan" for one that lies in every range, and cuts what is too large for
// an integer.
void check_numbers(const CLI::App& app, const std::string& advice) {
  for (const CLI::Option* option : app.get_options()) {
    const std::string type = option->get_type_name().substr(0, option->get_type_name().find(':'));
    if (type != "N" && type != "N,..." && type != "X" && type != "SECONDS") continue;
    for (const std::string& text : option->results())
      if (const double value = std::strtod(text.c_str(), nullptr); !(std::abs(value) <= 0x1p63))
        throw Error(ErrorKind::usage,
                    fmt::format("{} is {}, but must be a number of at most 2^63{}", option->get_name(), text, advice));
  }
}

std::string one_line(std::string text) {
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

}  // namespace

std::unique_ptr<CLI::App> make_command_line(const std::string& program, const std::string& usage, const std::string& description) {
  auto app = std::make_unique<CLI::App>("Usage: " + program + " " + usage + "\n" + description, program);
  app->formatter(std::make_shared<CompactFormatter>());
  app->option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  app->set_help_flag("-h,--help", "show the flags and stop")->group(kLastGroup);
  app->set_version_flag("--version", program + " " + PQ_VERSION, "show the version and stop")->group(kLastGroup);
  return app;
}

void add_recipe_flags(CLI::App* app, RecipeFlags* flags) {
  const std::string group = "Quantising a checkpoint";
  app->add_option("--format", flags->format, "of every large matrix: pq2 .. pq8, int4, int4a, bf16, f32 [pq5]")
      ->type_name("NAME")
      ->group(group);
  app->add_option("--policy", flags->policy_path, "lines \"GLOB FORMAT\": formats by tensor")->type_name("FILE")->group(group);
  app->add_option("--table", flags->table, "of centroids: converged, published or bounded")
      ->type_name("NAME")
      ->capture_default_str()
      ->group(group);
  app->add_flag("--no-scale-search", flags->no_scale_search, "plain norms, as the published encoder")->group(group);
  app->add_option("--through", flags->through, "pqN codes and bf16 before the format, as in pq5 to int4")
      ->type_name("pqN")
      ->group(group);
}

void add_activations_flag(CLI::App* app, std::string* activations) {
  app->add_option("--activations", *activations, "int8 or f32")
      ->type_name("TYPE")
      ->check(CLI::IsMember({"int8", "f32"}))
      ->capture_default_str();
}

void add_backend_flags(CLI::App* app, BackendFlags* flags) {
  app->add_option("-t,--threads", flags->threads, "of a rank [its CPUs]")->type_name("N")->check(CLI::Range(1, 1024));
  app->add_option("--isa", flags->isa, "instruction set, as avx2 [the best there is]")->type_name("NAME");
  app->add_option("--device", flags->device, "cpu, cuda, auto (cuda where a GPU answers) or reference")
      ->type_name("NAME")
      ->check(CLI::IsMember({"cpu", "cuda", "auto", "reference"}))
      ->capture_default_str();
  app->add_flag("--share-device", flags->share_device, "several ranks may use one GPU");
  app->add_option("--allreduce", flags->allreduce, "how GPUs add: p2p, host, nccl, mpi or auto")
      ->type_name("NAME")
      ->check(CLI::IsMember({"auto", "p2p", "host", "nccl", "mpi"}))
      ->capture_default_str();
}

void add_prefill_flag(CLI::App* app, BackendFlags* flags) {
  app->add_option("--prefill", flags->prefill, "on a GPU: codes (the bits of decode) or cublas (BF16)")
      ->type_name("WAY")
      ->check(CLI::IsMember({"codes", "cublas"}))
      ->capture_default_str();
}

void add_job_flags(CLI::App* app, JobOptions* options) {
  app->add_option("--watchdog", options->watchdog_seconds, "seconds without progress that end the job; 0: wait for ever")
      ->type_name("SECONDS")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  app->add_flag("--check-collectives", options->check_collectives, "compare what the ranks call before they do it");
}

void add_size_flag(CLI::App* app, const std::string& name, int64_t* bytes, const std::string& help) {
  app->add_option_function<std::string>(
         name,
         [name, bytes](const std::string& text) {
           if (try_parse_size(text, bytes)) return;
           throw Error(ErrorKind::usage, fmt::format("{} is \"{}\"; write bytes, or a number with MB, GB, MiB or GiB", name, text));
         },
         help)
      ->type_name("SIZE");
}

void add_model_flags(CLI::App* app, ModelFlags* flags) {
  const std::string group = "Model";
  app->option_defaults()->group(group);
  app->add_option("-m,--model", flags->model, "store, or checkpoint that is quantised while loading")->type_name("DIR")->required();
  app->add_option_function<int64_t>(
         "-c,--ctx-size",
         [flags](int64_t value) {
           flags->context = value;
           flags->context_given = true;
         },
         "positions to hold; 0: all of the model [4096]")
      ->type_name("N")
      ->check(CLI::Range(int64_t{0}, kMaxModelPositions));
  app->add_option("-b,--batch-size", flags->batch, "tokens a step holds at most")
      ->type_name("N")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  add_size_flag(app, "--memory", &flags->memory_bytes, "a rank may take, as in 10GB or 10GiB [what is free]");
  add_activations_flag(app, &flags->activations);
  app->add_option("--kv-type", flags->kv_type, "f16, q8 or f32 [f16; f32 with --activations f32]")
      ->type_name("TYPE")
      ->check(CLI::IsMember({"f16", "q8", "f32"}));
  add_backend_flags(app, &flags->backend);
  add_prefill_flag(app, &flags->backend);
  add_recipe_flags(app, &flags->recipe);
  app->option_defaults()->group(kLastGroup);
}

std::optional<std::string> parse_command_line(CLI::App* app, int argc, char** argv,
                                              const std::map<std::string, std::string>& aliases) {
  // CLI11 takes the words last first.
  std::vector<std::string> words;
  for (int i = argc - 1; i > 0; --i) {
    const auto alias = aliases.find(argv[i]);
    words.push_back(alias == aliases.end() ? argv[i] : alias->second);
  }
  const std::string advice = "; see " + app->get_name() + " --help";
  try {
    app->parse(words);
    check_numbers(*app, advice);
    return std::nullopt;
  } catch (const CLI::CallForHelp&) {
    return app->help();
  } catch (const CLI::CallForVersion& version) {
    return std::string(version.what()) + "\n";
  } catch (const CLI::ExtrasError&) {
    const std::string word = app->remaining().front();
    const std::string flag = word.substr(0, word.find('='));
    if (word.rfind('-', 0) != 0) throw Error(ErrorKind::usage, "unexpected argument \"" + one_line(word) + "\"" + advice);
    throw Error(ErrorKind::usage, "unknown flag " + one_line(flag) + suggestion(*app, flag) + advice);
  } catch (const CLI::ParseError& error) {
    throw Error(ErrorKind::usage, one_line(error.what()) + advice);
  }
}

Encoding parse_encoding(const std::string& flag, const std::string& name) {
  Encoding encoding;
  if (!try_parse_encoding(name, &encoding)) {
    throw Error(ErrorKind::usage, fmt::format("{} is \"{}\", but must be one of {}", flag, name, encoding_names()));
  }
  return encoding;
}

Recipe make_recipe(const RecipeFlags& flags) {
  Recipe recipe;
  if (!flags.format.empty()) recipe.policy = Policy(parse_encoding("--format", flags.format));
  if (!flags.policy_path.empty()) recipe.policy.add_rules(read_text_file(flags.policy_path, kMaxPolicyBytes), flags.policy_path);
  if (!try_parse_table(flags.table, &recipe.table)) {
    throw Error(ErrorKind::usage, "--table is \"" + flags.table + "\", but must be converged, published or bounded");
  }
  recipe.scale_search = !flags.no_scale_search;
  if (!flags.through.empty()) {
    const Encoding through = parse_encoding("--through", flags.through);
    if (through.format != WeightFormat::polar) {
      throw Error(ErrorKind::usage, "--through is \"" + flags.through + "\", but must be one of pq2 to pq8");
    }
    recipe.through_bits = through.bits;
  }
  return recipe;
}

ActivationMode activation_mode(const ModelFlags& flags) {
  return flags.activations == "f32" ? ActivationMode::f32 : ActivationMode::int8;
}

KvType kv_type(const ModelFlags& flags) {
  if (flags.kv_type.empty()) return flags.activations == "f32" ? KvType::f32 : KvType::f16;
  return flags.kv_type == "f32" ? KvType::f32 : flags.kv_type == "q8" ? KvType::q8 : KvType::f16;
}

const char* kv_type_name(KvType type) { return type == KvType::f32 ? "f32" : type == KvType::f16 ? "f16" : "q8"; }

std::string bytes_text(int64_t bytes) {
  const char* units[] = {"bytes", "kB", "MB", "GB", "TB"};
  double value = static_cast<double>(bytes);
  int unit = 0;
  // 999.5 and more would be printed as 1000.
  while (value >= 999.5 && unit < 4) {
    value /= 1000;
    ++unit;
  }
  if (unit == 0) return fmt::format("{} bytes", bytes);
  return fmt::format("{:.{}f} {}", value, value < 9.995 ? 2 : value < 99.95 ? 1 : 0, units[unit]);
}

bool try_parse_size(const std::string& text, int64_t* bytes) {
  const size_t digits = text.find_first_not_of("0123456789.");
  const std::string number = text.substr(0, digits);
  std::string unit = digits == std::string::npos ? "" : text.substr(digits);
  unit.erase(0, unit.find_first_not_of(' '));
  static const std::map<std::string, double> kUnits = {{"", 1},         {"B", 1},        {"kB", 1e3},    {"KB", 1e3},
                                                       {"MB", 1e6},     {"GB", 1e9},     {"TB", 1e12},   {"KiB", 0x1p10},
                                                       {"MiB", 0x1p20}, {"GiB", 0x1p30}, {"TiB", 0x1p40}};
  const auto factor = kUnits.find(unit);
  if (factor == kUnits.end() || number.empty() || number.find_first_of("0123456789") == std::string::npos ||
      std::count(number.begin(), number.end(), '.') > (unit.empty() ? 0 : 1)) {
    return false;
  }
  const double value = std::strtod(number.c_str(), nullptr) * factor->second;
  if (!(value >= 1 && value < 0x1p62)) return false;
  *bytes = static_cast<int64_t>(value);
  return true;
}

}  // namespace pq
