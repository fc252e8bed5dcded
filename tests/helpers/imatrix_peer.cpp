// llama.cpp's own llama-imatrix, run on token ids instead of a text: what it gathers is the oracle for ours.
//
// usage: llama-imatrix MODEL.gguf TOKENS OUT.gguf N_CTX [--process-output]; TOKENS is a file of int32. The program is
// tools/imatrix/imatrix.cpp as it stands; only its command line, its loading of a model and its tokenizing are replaced,
// so that it needs little of llama.cpp's common library.

#include "arg.h"
#include "common.h"
#include "llama.h"
#include "log.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

int common_log_get_verbosity_thold(void) { return 0; }
struct common_log * common_log_main() { return nullptr; }
void common_log_add(struct common_log *, enum ggml_log_level, const char * format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::vfprintf(stderr, format, arguments);
    va_end(arguments);
}

static std::string peer_tokens;

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
    of_model.use_extra_bufts = false; // a repacked weight would hide the product from the collector
    result->loaded = llama_model_load_from_file(params.model.path.c_str(), of_model);
    if (!result->loaded) { return result; }
    llama_context_params of_context = llama_context_default_params();
    of_context.n_ctx = params.n_ctx;
    of_context.n_batch = params.n_batch;
    of_context.n_ubatch = params.n_batch;
    of_context.n_threads = of_context.n_threads_batch = 2;
    of_context.type_k = of_context.type_v = GGML_TYPE_F32;
    of_context.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    char size[16]; // MiniMax M3 chooses blocks of keys with flash attention only
    if (llama_model_meta_val_str(result->loaded, "minimax-m3.attention.indexer.block_size", size, sizeof(size)) > 0) {
        of_context.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    }
    of_context.cb_eval = params.cb_eval;
    of_context.cb_eval_user_data = params.cb_eval_user_data;
    result->running = llama_init_from_model(result->loaded, of_context);
    return result;
}

static std::vector<llama_token> peer_tokenize(const llama_context *, const std::string &, bool, bool) {
    std::ifstream file(peer_tokens, std::ios::binary);
    std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    std::vector<llama_token> tokens(bytes.size() / sizeof(llama_token));
    std::memcpy(tokens.data(), bytes.data(), tokens.size() * sizeof(llama_token));
    return tokens;
}

bool common_params_parse(int argc, char ** argv, common_params & params, llama_example, void (*)(int, char **)) {
    if (argc < 5) { return false; }
    params.model.path = argv[1];
    peer_tokens = argv[2];
    params.out_file = argv[3];
    params.n_ctx = params.n_batch = std::stoi(argv[4]);
    params.process_output = argc > 5 && std::strcmp(argv[5], "--process-output") == 0;
    params.compute_ppl = false;
    params.prompt = params.prompt_file = "tokens";
    return true;
}

#define common_init() llama_log_set(nullptr, nullptr)
#define common_init_from_params peer_load
#define common_tokenize peer_tokenize
#include "imatrix.cpp"
