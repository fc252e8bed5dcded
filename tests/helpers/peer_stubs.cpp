// What llama-quantize and llama-gguf-split take from llama.cpp's common library and the tests never use: version texts,
// logging, --override-kv. With these the two programs link against llama-cpp-python's libllama in seconds, where the
// whole library would take minutes.

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "build-info.h"
#include "common.h"
#include "log.h"

int llama_build_number(void) { return 0; }
const char * llama_commit(void) { return "unknown"; }
const char * llama_compiler(void) { return "unknown"; }
const char * llama_build_target(void) { return "unknown"; }
const char * llama_build_info(void) { return "unknown"; }
void llama_print_build_info(const char *, FILE *) {}

int common_log_get_verbosity_thold(void) { return -1; }
struct common_log * common_log_main() { return nullptr; }
void common_log_add(struct common_log *, enum ggml_log_level, const char *, ...) {}

bool string_parse_kv_override(const char *, std::vector<llama_model_kv_override> &) {
    std::fprintf(stderr, "--override-kv is left out of this build\n");
    std::exit(1);
}
