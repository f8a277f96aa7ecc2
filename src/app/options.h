// Command lines: the flags that programs share, the parser's behaviour (one line and exit code 64 for a mistake, with the nearest
// known flag; help that fits its screen), sizes as people write them. What a program does is left to its main.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "comm/session.h"
#include "kernels/backend.h"
#include "store/policy.h"

namespace CLI {
class App;
}

namespace pq {

// How a checkpoint becomes coded weights.
struct RecipeFlags {
  std::string format;       // --format
  std::string policy_path;  // --policy
  std::string table = "converged";
  bool no_scale_search = false;
  std::string through;
};

// What computes.
struct BackendFlags {
  std::string device = "cpu";
  std::string isa;  // empty: the fastest
  int threads = 0;  // 0: the CPUs of the rank
  bool share_device = false;
  std::string allreduce = "auto";  // how GPUs add over ranks: a name of comm/sum_choice.h
  std::string prefill = "codes";   // how a GPU multiplies many tokens: codes or cublas
};

// Which model, and how it is held.
struct ModelFlags {
  std::string model;
  int64_t context = 4096;  // 0: all positions of the model; the default is cut to them
  bool context_given = false;
  int64_t batch = 256;
  int64_t parallel = 1;      // sequences held at once
  int64_t memory_bytes = 0;  // a rank; 0: what the node has available
  std::string activations = "int8";
  std::string kv_type;  // f16, q8 or f32; empty: f16, or f32 with --activations f32
  BackendFlags backend;
  RecipeFlags recipe;
};

// An empty command line for `program`: --help, --version, the last of repeated flags wins.
std::unique_ptr<CLI::App> make_command_line(const std::string& program, const std::string& usage, const std::string& description);

// In a group of its own; the group of options defined later stays as it was.
void add_recipe_flags(CLI::App* app, RecipeFlags* flags);
void add_activations_flag(CLI::App* app, std::string* activations);
// -t, --isa, --device and how GPUs add.
void add_backend_flags(CLI::App* app, BackendFlags* flags);
// --prefill, of programs that run a model.
void add_prefill_flag(CLI::App* app, BackendFlags* flags);
// --watchdog and --check-collectives.
void add_job_flags(CLI::App* app, JobOptions* options);
// -m, -c, -b, --memory, --activations, --kv-type, --prefill, the backend flags and the recipe flags.
void add_model_flags(CLI::App* app, ModelFlags* flags);
// A size flag: bytes, or a number with kB MB GB TB (powers of 1000) or KiB MiB GiB TiB.
void add_size_flag(CLI::App* app, const std::string& name, int64_t* bytes, const std::string& help);

// `aliases`: words with one dash and several letters, which the parser would split, and what they stand for.
// Returns the text to print when --help or --version was given. Throws ErrorKind::usage for anything wrong.
std::optional<std::string> parse_command_line(CLI::App* app, int argc, char** argv,
                                              const std::map<std::string, std::string>& aliases = {});

// Throws ErrorKind::usage that names `flag` and lists the known formats.
Encoding parse_encoding(const std::string& flag, const std::string& name);
// Reads the policy file when one is named. Throws ErrorKind::usage or ErrorKind::input.
Recipe make_recipe(const RecipeFlags& flags);
ActivationMode activation_mode(const ModelFlags& flags);
KvType kv_type(const ModelFlags& flags);
const char* kv_type_name(KvType type);

// "8.63 GB", "75 MB", "312 bytes": powers of 1000, three digits.
std::string bytes_text(int64_t bytes);
// False when `text` is not a size.
bool try_parse_size(const std::string& text, int64_t* bytes);

}  // namespace pq
