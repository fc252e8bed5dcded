// llama.cpp's own llama-perplexity: its figures are the oracle for ours, its time the yardstick.
//
// usage: llama-perplexity -m MODEL.gguf -f TEXT -c N_CTX --chunks N -t THREADS
//                         [--kl-divergence-base FILE [--kl-divergence]]
// The program is tools/perplexity/perplexity.cpp as it stands; only its command line and its loading of a model are
// replaced, with the settings that its own would end up with, so that it needs little of llama.cpp's common library.

#include "arg.h"
#include "common.h"
#include "fit.h"
#include "llama.h"
#include "log.h"

#include <cstdarg>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>

int common_log_get_verbosity_thold(void) { return LOG_LEVEL_INFO; }
struct common_log * common_log_main() { return nullptr; }
void common_log_add(struct common_log *, enum ggml_log_level, const char * format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::vprintf(format, arguments);
    va_end(arguments);
}

struct peer_loaded {
    llama_model * loaded = nullptr;
    llama_context * running = nullptr;
    llama_model * model() { return loaded; }
    llama_context * context() { return running; }
    ~peer_loaded() {
        if (running) { llama_free(running); }
        if (loaded) { llama_model_free(loaded); }
    }
};

static std::unique_ptr<peer_loaded> peer_load(common_params & params) {
    auto result = std::make_unique<peer_loaded>();
    llama_model_params of_model = llama_model_default_params();
    of_model.n_gpu_layers = params.n_gpu_layers;
    result->loaded = llama_model_load_from_file(params.model.path.c_str(), of_model);
    if (!result->loaded) { return result; }
    llama_context_params of_context = llama_context_default_params();
    of_context.n_ctx = params.n_ctx;
    of_context.n_seq_max = params.n_parallel;
    of_context.n_batch = params.n_batch;
    of_context.n_ubatch = params.n_ubatch;
    of_context.n_threads = of_context.n_threads_batch = params.cpuparams.n_threads;
    of_context.type_k = params.cache_type_k;
    of_context.type_v = params.cache_type_v;
    of_context.flash_attn_type = params.flash_attn_type;
    of_context.kv_unified = params.kv_unified;
    result->running = llama_init_from_model(result->loaded, of_context);
    return result;
}

static std::string peer_text(const char * path) {
    std::ifstream file(path, std::ios::binary);
    std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    if (!text.empty() && text.back() == '\n') { text.pop_back(); }
    return text;
}

bool common_params_parse(int argc, char ** argv, common_params & params, llama_example, void (*)(int, char **)) {
    for (int i = 1; i < argc; i++) {
        const std::string option = argv[i];
        if (option == "--kl-divergence") { params.kl_divergence = true; continue; }
        if (++i == argc) { return false; }
        if (option == "-m") { params.model.path = argv[i]; }
        else if (option == "-f") { params.prompt = peer_text(argv[i]); }
        else if (option == "-c") { params.n_ctx = std::stoi(argv[i]); }
        else if (option == "--chunks") { params.n_chunks = std::stoi(argv[i]); }
        else if (option == "-t") { params.cpuparams.n_threads = std::stoi(argv[i]); }
        else if (option == "--kl-divergence-base") { params.logits_file = argv[i]; }
        else { return false; }
    }
    return true;
}

#define common_init() llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr)
#define common_init_from_params peer_load
#define common_params_get_system_info(params) std::string()
#define common_memory_breakdown_print(context) (void) (context)
#include "perplexity.cpp"

int main(int argc, char ** argv) { return llama_perplexity(argc, argv); }
