#!/data/data/com.termux/files/usr/bin/bash
# Install and run a language model in Termux on an Android phone. Save and run this script, or pipe it:
#
#     curl -fsSL ADDRESS/termux.sh | bash
#     curl -fsSL ADDRESS/termux.sh | bash -s -- --model NAMESPACE/MODEL:TAG --dry-run
#
# It prints each step before it runs it:
#   1. checks the phone: Termux on a 64-bit ARM processor, cores, memory, free space
#   2. refuses a model that does not fit, before any download
#   3. installs a runtime: the package ollama; else, for a GGUF, the package llama-cpp; else Ollama from source
#   4. downloads the model; an interrupted download resumes
#   5. keeps the server running: a runit service, a wake lock, a start at boot; each is optional
#   6. prints the commands to chat
# A second run skips the finished steps. --uninstall removes what this script installed, and nothing else. --help lists
# the options.
#
# Tested with bash, curl and runit on Linux in an imitation of Termux; not tested on Android.

set -euo pipefail

# >>> settings, filled in by `quantkit termux`
# Ollama's name of the model: the model to pull, or the name for the GGUF.
NAME=''
# URL of a GGUF, or its file name on the phone; if empty, Ollama pulls NAME.
# shellcheck disable=SC1003,SC2016
GGUF=''
# Size of the model's file, and its sha256.
MODEL_BYTES=''
MODEL_SHA256=''
# CONTEXT:BATCH:BYTES, the memory of the running model for each context and batch, smallest first.
MEMORY=''
# The context in tokens; if empty, the phone's memory decides.
CTX=''
# Lines of the Modelfile without FROM, num_ctx, num_batch and num_thread.
# shellcheck disable=SC1003,SC2016
MODELFILE=''
# The same parameters as flags of llama-server.
LLAMA_FLAGS=''
# <<< settings

# GIGABYTES:CONTEXT:BATCH, the maximum for a phone sold with this memory (quantkit/planning/phones.py).
PHONES='4:2048:128 6:4096:256 8:4096:512 12:8192:512'
SMALLER_PHONE='1024:128'
# Assumption: Android and its services use a tenth of the memory and 2 GiB.
ANDROID_KIB=2097152
ANDROID_TENTHS=1
# The contexts to choose from if MEMORY is empty; the bytes are unknown.
CONTEXTS='1024:128:0 2048:128:0 4096:256:0 4096:512:0 8192:512:0'
# Bytes in addition to the weights, if only the size of the file is known.
BESIDE_WEIGHTS=500000000
# Disk space of the packages, and of a build of Ollama.
PACKAGES_BYTES=300000000
BUILD_BYTES=6000000000
OLLAMA_SOURCE='https://github.com/ollama/ollama'
OLLAMA_TAG='v0.31.1'

# Places that the tests replace.
PROC=${QUANTKIT_PROC:-/proc}
SYS=${QUANTKIT_SYS:-/sys}
REGISTRY=${QUANTKIT_REGISTRY:-}
WAIT=${QUANTKIT_WAIT:-90}
PAUSE=${QUANTKIT_PAUSE:-3}

WAY=auto
GPU=''
THREADS=''
RAM=''
SERVICE=1 WAKE_LOCK=1 BOOT=1
DRY_RUN='' ANYWAY='' UNINSTALL=''
MARK='# made by quantkit termux'

# The name of this file, for messages; a script that is piped into bash has none.
SELF=${BASH_SOURCE[0]:-termux.sh}
SELF=${SELF##*/}

usage() {
  printf 'usage: %s [options]\n\n' "$SELF"
  cat <<'END'
  --model NAME        pull this model with Ollama: NAMESPACE/MODEL:TAG
  --gguf URL|FILE     download this GGUF, or use the file of this name on the phone
  --size BYTES        size of the model, if the script does not know it
  --sha256 HEX        sha256 of the GGUF
  --ram BYTES         memory of the running model
  --ctx N             context in tokens, instead of the maximum for the phone's memory
  --threads N         threads, instead of the number of big cores
  --use WAY           auto, ollama, llama.cpp or source
  --gpu vulkan|opencl also install a GPU backend (not tested; an Adreno 660 is known to give wrong answers)
  --no-service        start the server once, without a runit service
  --no-wake-lock      let Android sleep
  --no-boot           do not start at boot
  --anyway            continue although memory or space seems too small
  --dry-run           print every step, change nothing
  --uninstall         remove what this script installed
END
}

say() { printf '%s\n' "$*"; }
step() { printf '\n== %s\n' "$*"; }
warn() { printf 'note: %s\n' "$*" >&2; }

die() {
  printf '%s: %s\n' "$SELF" "$*" >&2
  exit 1
}

wrong() {
  printf '%s: %s\n' "$SELF" "$*" >&2
  exit 2
}

# Print a command, then run it. Its stdin is /dev/null: if this script is piped into bash, stdin is the script.
run() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
  [[ -n $DRY_RUN ]] || "$@" </dev/null
}

# Print a command, then run it without its output.
quietly() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
  [[ -n $DRY_RUN ]] || "$@" </dev/null >/dev/null 2>&1 || true
}

# put FILE MODE TEXT: print the text, then write the file in one step.
put() {
  local file=$1 mode=$2 text=$3
  printf '+ write %q (mode %s):\n' "$file" "$mode"
  local line
  while IFS= read -r line; do printf '    %s\n' "$line"; done <<<"$text"
  [[ -n $DRY_RUN ]] && return
  printf '%s\n' "$text" >"$file.new"
  chmod "$mode" "$file.new"
  mv -f "$file.new" "$file"
}

same() { [[ -f $1 && $(<"$1") == "$2" ]]; }

# folder DIR: create it and record each new folder, so that --uninstall can remove the empty ones.
folder() {
  [[ -d $1 ]] && return
  folder "$(dirname "$1")"
  record folder "$1"
  [[ -d $1 ]] || run mkdir "$1"
}

# Record KIND NAME before it is made, so that --uninstall knows it after a kill.
record() {
  [[ -n $DRY_RUN ]] && return
  is_recorded "$@" || printf '%s\n' "$*" >>"$STATE/made"
}

is_recorded() { [[ -f $STATE/made ]] && grep -qxF -- "$*" "$STATE/made"; }

gb() {
  local tens=$((($1 + 5000000) / 10000000))
  printf '%d.%02d GB' $((tens / 100)) $((tens % 100))
}

size_of() { if [[ -f $1 ]]; then stat -L -c %s "$1"; else echo 0; fi; }
installed() { dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q 'ok installed'; }
whole() { [[ $2 =~ ^[1-9][0-9]{0,15}$ ]] || wrong "$1 takes a whole number, not '$2'"; }

read_options() {
  local word
  for word in "$@"; do
    # Another model: the settings of the first one do not apply.
    if [[ $word == --model || $word == --gguf ]]; then
      NAME='' GGUF='' MODEL_BYTES='' MODEL_SHA256='' MEMORY='' MODELFILE='' LLAMA_FLAGS=''
    fi
  done
  while (($#)); do
    case $1 in
      --model | --gguf | --size | --sha256 | --ram | --ctx | --threads | --use | --gpu)
        (($# > 1)) || wrong "$1 needs a value"
        ;;
    esac
    case $1 in
      --model) NAME=$2 && shift ;;
      --gguf) GGUF=$2 && shift ;;
      --size) whole "$1" "$2" && MODEL_BYTES=$2 && shift ;;
      --sha256) MODEL_SHA256=${2,,} && shift ;;
      --ram) whole "$1" "$2" && RAM=$2 && shift ;;
      --ctx) whole "$1" "$2" && CTX=$2 && shift ;;
      --threads) whole "$1" "$2" && THREADS=$2 && shift ;;
      --use) WAY=$2 && shift ;;
      --gpu) GPU=$2 && shift ;;
      --no-service) SERVICE='' ;;
      --no-wake-lock) WAKE_LOCK='' ;;
      --no-boot) BOOT='' ;;
      --anyway) ANYWAY=1 ;;
      --dry-run) DRY_RUN=1 ;;
      --uninstall) UNINSTALL=1 ;;
      -h | --help) usage && exit 0 ;;
      *) wrong "unknown option '$1'; --help lists the options" ;;
    esac
    shift
  done
  [[ $WAY =~ ^(auto|ollama|llama\.cpp|source)$ ]] || wrong "--use takes auto, ollama, llama.cpp or source, not '$WAY'"
  [[ -z $GPU || $GPU =~ ^(vulkan|opencl)$ ]] || wrong "--gpu takes vulkan or opencl, not '$GPU'"
  [[ -z $MODEL_SHA256 || $MODEL_SHA256 =~ ^[0-9a-f]{64}$ ]] || wrong "--sha256 takes 64 hexadecimal digits"
  [[ -z $NAME || $NAME =~ ^[A-Za-z0-9_][A-Za-z0-9._:/-]*$ ]] || wrong "'$NAME' is not the name of a model; write NAMESPACE/MODEL:TAG"
  [[ $GGUF != *[[:cntrl:]]* ]] || wrong "the address of --gguf has control characters; remove them"
  if [[ -n $GGUF && -z $NAME ]]; then
    local base=${GGUF%%[?#]*}
    base=${base##*/}
    base=${base%.gguf}
    NAME=$(printf '%s' "${base,,}" | tr -c 'a-z0-9._-' - | sed 's/^[.-]*//; s/\.\.*/./g')
    NAME=${NAME:0:80}
    [[ -n $NAME ]] || NAME=model
  fi
}

is_url() { [[ $1 =~ ^https?:// ]]; }

# ---- the phone

guard() {
  if [[ -z ${PREFIX:-} || ! -d $PREFIX || -z ${HOME:-} ]] || ! command -v pkg >/dev/null; then
    die "this is not Termux (\$PREFIX or pkg is missing); run it in the Termux app on an Android phone"
  fi
  local machine
  machine=$(uname -m)
  [[ $machine == aarch64 || $machine == arm64 ]] ||
    die "this processor is $machine; Termux has Ollama and llama.cpp for aarch64 only"
  STATE=$HOME/.quantkit-termux
  SVDIR=${SVDIR:-$PREFIX/var/service}
  LOGDIR=${LOGDIR:-$PREFIX/var/log}
  export SVDIR LOGDIR
  HOST=${OLLAMA_HOST:-127.0.0.1:11434}
  HOST=${HOST#*://}
  HOST=${HOST%/}
  [[ $HOST == *:* ]] || HOST=$HOST:11434
  HOST=${HOST/#0.0.0.0:/127.0.0.1:}
  LLAMA_PORT=${QUANTKIT_LLAMA_PORT:-8080}
}

meminfo() {
  local key value
  while read -r key value _; do
    if [[ $key == "$1:" ]]; then
      echo "$value"
      return
    fi
  done <"$PROC/meminfo"
  echo 0
}

# The big cores: all cores except those of the slowest cluster. A single cluster counts as big. The slowest cluster
# counts too if the kernel rates its capacity at 6/10 of the fastest one or more: such a phone has big cores only.
count_big_cores() {
  local -A cores=() capacity=()
  local cpu speed slowest='' best=0
  for cpu in "$SYS"/devices/system/cpu/cpu[0-9]*; do
    [[ -r $cpu/cpufreq/cpuinfo_max_freq ]] || continue
    speed=$(<"$cpu/cpufreq/cpuinfo_max_freq")
    [[ $speed =~ ^[0-9]+$ ]] || continue
    cores[$speed]=$((${cores[$speed]:-0} + 1))
    if [[ -r $cpu/cpu_capacity ]]; then
      capacity[$speed]=$(<"$cpu/cpu_capacity")
      ((best = capacity[$speed] > best ? capacity[$speed] : best))
    fi
    [[ -n $slowest ]] && ((speed >= slowest)) || slowest=$speed
  done
  local all=0 count
  for count in "${cores[@]}"; do ((all += count)); done
  if ((all == 0)); then
    # The kernel does not report speeds: half of the cores is correct for most phones.
    all=$(nproc 2>/dev/null || echo 2)
    BIG_CORES=$((all > 2 ? all / 2 : all))
    CORES="$all cores, unknown speeds"
    return
  fi
  BIG_CORES=$all
  if ((${#cores[@]} > 1 && (best == 0 || ${capacity[$slowest]:-0} * 10 < best * 6))); then
    BIG_CORES=$((all - cores[$slowest]))
  fi
  CORES=''
  while read -r speed; do
    CORES+="${CORES:+ + }${cores[$speed]} of $((speed / 1000)) MHz"
  done < <(printf '%s\n' "${!cores[@]}" | sort -n)
}

check_phone() {
  step 'This phone'
  count_big_cores
  [[ -n $THREADS ]] || THREADS=$BIG_CORES
  TOTAL_KIB=$(meminfo MemTotal)
  AVAILABLE=$(($(meminfo MemAvailable) * 1024))
  ((TOTAL_KIB > 0)) || die "$PROC/meminfo does not contain MemTotal, so the memory is unknown"
  ROOM=$(((TOTAL_KIB * (10 - ANDROID_TENTHS) / 10 - ANDROID_KIB) * 1024))
  ((AVAILABLE > ROOM)) && ROOM=$AVAILABLE
  FREE=$(free_bytes)
  say "cores:   $CORES; threads: $THREADS"
  say "memory:  $(gb $((TOTAL_KIB * 1024))), available now $(gb "$AVAILABLE"), room for a model $(gb "$ROOM")"
  say "space:   $(gb "$FREE") free"
}

free_bytes() {
  local free
  { read -r _ && read -r _ _ _ free _; } < <(df -Pk "$HOME")
  [[ $free =~ ^[0-9]+$ ]] || die "df does not report the free space of $HOME"
  echo $((free * 1024))
}

# ---- the memory and space of the model

# The maximum context and batch for the phone's memory. MemTotal is up to 15 % less than the memory it was sold with.
phone_limits() {
  local phone limit=$SMALLER_PHONE
  for phone in $PHONES; do
    ((${phone%%:*} * 1048576 * 85 / 100 <= TOTAL_KIB)) && limit=${phone#*:}
  done
  MOST_CTX=${limit%:*} MOST_BATCH=${limit#*:}
}

# Choose the largest context and batch within the phone's limits and its room.
choose_context() {
  phone_limits
  local entry ctx batch bytes least='' contexts=''
  N_CTX=''
  for entry in ${MEMORY:-$CONTEXTS}; do
    IFS=: read -r ctx batch bytes <<<"$entry"
    contexts+=" $ctx"
    ((batch <= MOST_BATCH)) || continue
    if [[ -n $CTX ]]; then
      [[ -z $MEMORY ]] && ctx=$CTX
      ((ctx == CTX)) || continue
    elif ((ctx > MOST_CTX)); then
      continue
    fi
    bytes=$(bytes_needed "$bytes")
    least=${least:-$ctx:$batch:$bytes}
    if ((bytes <= ROOM)); then N_CTX=$ctx N_BATCH=$batch NEED=$bytes; fi
  done
  [[ -n $least ]] || wrong "--ctx $CTX is not a context of this script:$contexts;" \
    "choose one of these, or write the script again with quantkit termux --ctx $CTX"
  IFS=: read -r ctx batch bytes <<<"$least"
  if [[ -z $N_CTX && -n $ANYWAY ]]; then N_CTX=$ctx N_BATCH=$batch NEED=$bytes; fi
  [[ -n $N_CTX ]] ||
    die "the model needs $(gb "$bytes") of memory at a context of $ctx, and this phone has room for $(gb "$ROOM");" \
      "choose a smaller model or type, or pass --anyway"
  if ((NEED == 0)); then
    say "needs:   unknown memory; context $N_CTX, batch $N_BATCH"
  else
    say "needs:   $(gb "$NEED") of memory with a context of $N_CTX, batch $N_BATCH"
    ((NEED <= AVAILABLE)) ||
      warn "only $(gb "$AVAILABLE") of memory are available now; close other apps, or Android may stop Termux"
  fi
}

# The bytes of --ram, or quantkit's figure, or the weights and BESIDE_WEIGHTS; 0 if unknown.
bytes_needed() {
  if [[ -n $RAM ]]; then
    echo "$RAM"
  elif (($1 > 0)); then
    echo "$1"
  elif ((${MODEL_BYTES:-0} > 0)); then
    echo $((MODEL_BYTES + BESIDE_WEIGHTS))
  else
    echo 0
  fi
}

# The size of the model to pull: the sum of the layers in the registry's manifest.
ask_registry() {
  local rest=$NAME host='' tag=latest answer code=0 size total=0
  [[ ${rest##*/} == *:* ]] && tag=${rest##*:} && rest=${rest%:*}
  [[ $rest == */*/* ]] && host=${rest%%/*} && rest=${rest#*/}
  [[ $rest == */* ]] || rest=library/$rest
  local base=${REGISTRY:-https://${host:-registry.ollama.ai}}
  answer=$(curl -sL --connect-timeout 20 --max-time 60 -w ' %{http_code}' \
    "$base/v2/$rest/manifests/$tag" </dev/null) || code=$?
  ((code == 0)) || no_network "$base" "$code"
  case ${answer##* } in
    200) while read -r size; do ((total += ${size##*:})); done < <(grep -oE '"size": *[0-9]+' <<<"$answer") ;;
    404) die "${base#*://} has no model $NAME; check the name and the tag" ;;
  esac
  if ((total > 0)); then
    MODEL_BYTES=$total
  elif [[ -z $MODEL_BYTES ]]; then
    warn "${base#*://} does not report the size of $NAME, so memory and space are not checked; pass --size and --ram"
  fi
}

no_network() {
  local host=${1#*://}
  die "no network: ${host%%/*} does not answer (curl's error $2); connect the phone and run this again" \
    "to resume"
}

# Find the GGUF file in the folders for downloads and copied files.
find_file() {
  local place
  local name=${GGUF##*/}
  for place in "$GGUF" "$HOME/$name" "$HOME/storage/downloads/$name" "/sdcard/Download/$name"; do
    if [[ -f $place ]]; then
      LOCAL_FILE=$(realpath "$place")
      return
    fi
  done
  die "file $name not found in this folder, in $HOME or in the phone's Download folder; copy it there," \
    "or pass its address with --gguf URL"
}

# Check that the model can be downloaded, and find its size.
ask_source() {
  LOCAL_FILE=''
  if is_present; then
    return
  elif [[ -z $GGUF ]]; then
    ask_registry
  elif is_url "$GGUF"; then
    local headers code=0 line
    headers=$(curl -fsSLI --connect-timeout 20 --max-time 60 -- "$GGUF" 2>/dev/null </dev/null) || code=$?
    case $code in
      0) ;;
      22) die "$GGUF not found or not readable on the server; check the address" ;;
      *) no_network "$GGUF" "$code" ;;
    esac
    if [[ -z $MODEL_BYTES ]]; then
      while IFS= read -r line; do
        [[ ${line,,} =~ ^content-length:\ *([0-9]+) ]] && MODEL_BYTES=${BASH_REMATCH[1]}
      done <<<"$headers"
      [[ $MODEL_BYTES != 0 ]] || MODEL_BYTES=''
    fi
  else
    find_file
    [[ -z $MODEL_BYTES || $(size_of "$LOCAL_FILE") == "$MODEL_BYTES" ]] ||
      die "$LOCAL_FILE has $(size_of "$LOCAL_FILE") bytes instead of $MODEL_BYTES; copy it again"
    MODEL_BYTES=$(size_of "$LOCAL_FILE")
  fi
}

check_space() {
  local bytes=${MODEL_BYTES:-0} need=0
  if [[ -z $GGUF ]]; then
    need=$bytes
  else
    is_url "$GGUF" && need=$((bytes - $(size_of "$STATE/model.gguf.part")))
    # Ollama makes a copy of the GGUF.
    [[ $WAY == llama.cpp ]] || need=$((need + bytes))
  fi
  command -v ollama >/dev/null || command -v llama-server >/dev/null || need=$((need + PACKAGES_BYTES))
  ((need <= FREE)) || [[ -n $ANYWAY ]] ||
    die "this takes $(gb "$need") of space and $(gb "$FREE") are free;" \
      "free $(gb $((need - FREE))) more, or pass --anyway"
  say "takes:   $(gb "$need") of space"
}

# ---- the runtime

# Install the missing packages. Returns 1 if pkg fails.
install() {
  local package missing=()
  for package in "$@"; do installed "$package" || missing+=("$package"); done
  ((${#missing[@]})) || return 0
  for package in "${missing[@]}"; do record package "$package"; done
  run env DEBIAN_FRONTEND=noninteractive pkg install -y "${missing[@]}" && return
  # --uninstall must not remove a package that this script did not install.
  for package in "${missing[@]}"; do installed "$package" || unrecord package "$package"; done
  return 1
}

unrecord() {
  [[ -z $DRY_RUN && -f $STATE/made ]] || return 0
  grep -vxF -- "$*" "$STATE/made" >"$STATE/made.new" || true
  mv -f "$STATE/made.new" "$STATE/made"
}

works() { [[ -n $DRY_RUN ]] || "$1" --version </dev/null >/dev/null 2>&1; }

with_ollama() {
  RUNTIME=ollama
  if ! command -v ollama >/dev/null; then install ollama || return 1; fi
  works ollama || return 1
  [[ -z $GPU ]] || install "ollama-backend-$GPU" vulkan-loader-generic mesa-vulkan-icd-freedreno ||
    warn "the GPU backend was not installed; the model runs on the processor"
}

with_llama_cpp() {
  [[ -n $GGUF ]] || {
    say "(llama.cpp cannot pull $NAME; it needs a GGUF: pass --gguf)"
    return 1
  }
  RUNTIME=llama-server
  if ! command -v llama-server >/dev/null; then install llama-cpp || return 1; fi
  works llama-server || return 1
  [[ -z $GPU ]] || install "llama-cpp-backend-$GPU" vulkan-loader-generic mesa-vulkan-icd-freedreno ||
    warn "the GPU backend was not installed; the model runs on the processor"
}

with_source() {
  RUNTIME=ollama
  local source=$STATE/ollama-source
  ((BUILD_BYTES <= FREE)) || [[ -n $ANYWAY ]] || {
    say "(building Ollama takes about $(gb $BUILD_BYTES) of space, $(gb "$FREE") are free)"
    return 1
  }
  install golang git cmake ninja clang libandroid-spawn || return 1
  # Remove a tree of another version or an incomplete clone.
  if [[ -d $source && ! -f $source/.cloned-$OLLAMA_TAG ]]; then run rm -rf "$source" || return 1; fi
  if [[ ! -d $source ]]; then
    run git clone --depth 1 --branch "$OLLAMA_TAG" "$OLLAMA_SOURCE" "$source" || return 1
    run touch "$source/.cloned-$OLLAMA_TAG" || return 1
  fi
  run cmake -S "$source" -B "$source/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DGGML_BACKEND_DL=ON -DGGML_CPU_ALL_VARIANTS=ON -DGGML_OPENMP=OFF \
    -DCMAKE_EXE_LINKER_FLAGS=-landroid-spawn -DCMAKE_SHARED_LINKER_FLAGS=-landroid-spawn || return 1
  # A compiler takes up to one gigabyte, so there is one per big core.
  run cmake --build "$source/build" --parallel "$THREADS" || return 1
  [[ -n $DRY_RUN || -x $source/ollama ]] || return 1
  record link "$PREFIX/bin/ollama"
  # A link, because Ollama finds its libraries relative to its own file.
  run ln -sf "$source/ollama" "$PREFIX/bin/ollama" || return 1
  works ollama
}

get_runtime() {
  step 'The runtime'
  local way ways='ollama llama_cpp source'
  case $WAY in
    ollama) ways=ollama ;;
    llama.cpp) ways=llama_cpp ;;
    source) ways=source ;;
  esac
  # Ollama has no OpenCL backend.
  [[ $GPU == opencl && $WAY == auto ]] && ways='llama_cpp ollama source'
  for way in $ways; do
    if "with_$way"; then
      say "The runtime is $RUNTIME."
      return
    fi
    warn "${way/_/.} could not be installed on this phone"
  done
  die 'no runtime could be installed; read the messages above, check the network, run "pkg update",' \
    'and run this again'
}

# ---- the model

# The identity of the model: its name, address and sha256.
identity() { printf '%s\n%s\n%s' "$NAME" "$GGUF" "${MODEL_SHA256:-unknown}"; }

is_present() { same "$STATE/present" "$(identity)"; }

is_fetched() {
  [[ -f $FILE ]] && same "$FILE.from" "$GGUF $MODEL_SHA256" &&
    { [[ -z $MODEL_BYTES ]] || (($(size_of "$FILE") == MODEL_BYTES)); }
}

fetch_gguf() {
  [[ -n $GGUF ]] || return 0
  if [[ $RUNTIME == ollama ]] && is_present; then return; fi
  step 'The model'
  FILE=$STATE/model.gguf
  if [[ -n $LOCAL_FILE ]]; then
    check_sha256 "$LOCAL_FILE" || die "$LOCAL_FILE is damaged: its sha256 is not $MODEL_SHA256; copy it again"
    run ln -sf "$LOCAL_FILE" "$FILE"
  elif is_fetched; then
    say "$FILE already exists."
  else
    download
  fi
}

check_sha256() {
  [[ -n $MODEL_SHA256 && -z $DRY_RUN ]] || return 0
  say 'checking the sha256'
  [[ $(sha256sum <"$1") == "$MODEL_SHA256 "* ]]
}

download() {
  local part=$FILE.part had code idle=0
  # The part of another file must not be resumed.
  same "$FILE.from" "$GGUF $MODEL_SHA256" || { [[ ! -e $part ]] || run rm -f "$part"; }
  put "$FILE.from" 600 "$GGUF $MODEL_SHA256"
  local show=-sS
  [[ ! -t 2 ]] || show=--progress-bar
  while :; do
    had=$(size_of "$part")
    [[ -n $MODEL_BYTES ]] && ((had > MODEL_BYTES)) && run rm -f "$part" && had=0
    if [[ -n $MODEL_BYTES ]] && ((had == MODEL_BYTES)); then break; fi
    ((had == 0)) || say "resuming at $(gb "$had")"
    code=0
    run curl -fL "$show" --connect-timeout 20 --speed-limit 1000 --speed-time 60 -C - -o "$part" -- "$GGUF" || code=$?
    [[ -n $DRY_RUN ]] && break
    case $code in
      0) [[ -n $MODEL_BYTES ]] || break ;;
      22) die "the server no longer has $GGUF; check the address" ;;
      33) run rm -f "$part" ;; # The server cannot resume.
    esac
    if (($(size_of "$part") > had)); then
      idle=0
    elif ((++idle >= 5)); then
      no_network "$GGUF" "$code"
    fi
    ((code == 0)) || sleep "$PAUSE"
  done
  if ! check_sha256 "$part"; then
    run rm -f "$part"
    die "the file from $GGUF does not have the sha256 $MODEL_SHA256; run this again;" \
      "if that fails too, the server has another file"
  fi
  run mv -f "$part" "$FILE"
}

# ---- the server

answers() {
  local path=/api/version host=$HOST
  [[ $RUNTIME == ollama ]] || { path=/health && host=127.0.0.1:$LLAMA_PORT; }
  curl -fs --max-time 5 -o /dev/null "http://$host$path" </dev/null
}

server_command() {
  local binary
  binary=$(command -v "$RUNTIME" || echo "$PREFIX/bin/$RUNTIME")
  if [[ $RUNTIME == ollama ]]; then
    printf '%q serve' "$binary"
  else
    printf '%q ' "$binary" -m "$FILE" -c "$N_CTX" -b "$N_BATCH" -ub "$N_BATCH" -t "$THREADS" -np 1 --jinja
    [[ -z $GPU ]] || printf -- '-ngl 99 '
    [[ -z $LLAMA_FLAGS ]] || printf '%s ' "$LLAMA_FLAGS"
    printf -- '--host 127.0.0.1 --port %s' "$LLAMA_PORT"
  fi
}

server_environment() {
  printf 'export HOME=%q PREFIX=%q PATH=%q TMPDIR=%q\n' "$HOME" "$PREFIX" "$PREFIX/bin" "$PREFIX/tmp"
  [[ $RUNTIME == ollama ]] || return 0
  printf 'export OLLAMA_HOST=%q OLLAMA_NUM_PARALLEL=1 OLLAMA_MAX_LOADED_MODELS=1' "$HOST"
  [[ -z $GPU ]] || printf ' OLLAMA_VULKAN=1'
  printf '\n'
}

keep_running() {
  step 'The server'
  OURS=1
  local service=$SVDIR/$RUNTIME
  if answers && [[ ! -d $service && ! -f $STATE/server.pid ]]; then
    say 'A server answers already; this script uses it unchanged.'
    OURS=''
    return
  fi
  if [[ -n $WAKE_LOCK ]] && command -v termux-wake-lock >/dev/null; then
    record wake-lock
    run termux-wake-lock || warn 'the wake lock failed; Android may stop the server'
  fi
  if [[ -n $SERVICE ]] && ! install termux-services; then
    warn 'termux-services could not be installed; the server starts without a service'
    SERVICE=''
  fi
  if [[ -n $SERVICE ]]; then make_service "$service"; elif ! answers; then start_once; fi
  [[ -z $BOOT ]] || start_at_boot
}

make_service() {
  local service=$1 script log
  script="#!$PREFIX/bin/sh"$'\n'"$MARK"$'\n'"exec 2>&1"$'\n'"$(server_environment)"$'\n'"exec $(server_command)"
  log="#!$PREFIX/bin/sh"$'\n'"$MARK"$'\n'"exec $PREFIX/bin/svlogd -tt $(printf %q "$LOGDIR/sv/$RUNTIME")"
  if [[ -d $service ]] && ! grep -qsF "$MARK" "$service/run"; then
    say "The service $service is not from this script and stays unchanged."
  elif same "$service/run" "$script"; then
    say 'The service already exists.'
  elif [[ -d $service ]]; then
    put "$service/run" 700 "$script"
    run sv restart "$service" || true
  else
    folder "$SVDIR"
    folder "$LOGDIR/sv"
    run mkdir -p "$LOGDIR/sv/$RUNTIME"
    # Created under a hidden name and renamed, so that runit never sees an incomplete service.
    local new=$SVDIR/.$RUNTIME.new
    record service "$RUNTIME"
    run rm -rf "$new"
    run mkdir -p "$new/log"
    put "$new/run" 700 "$script"
    put "$new/log/run" 700 "$log"
    run mv "$new" "$service"
  fi
  [[ ! -f $service/down ]] || run rm -f "$service/down"
  # This does nothing if the daemon runs.
  record daemon
  quietly service-daemon start
  # For a service that a user stopped; runit starts a new one by itself within five seconds.
  [[ -n $DRY_RUN || ! -d $service/supervise ]] || run sv up "$service" || true
}

start_once() {
  put "$STATE/serve" 700 "#!$PREFIX/bin/sh"$'\n'"$MARK"$'\n'"$(server_environment)"$'\n'"exec $(server_command)"
  say "+ $(printf '%q' "$STATE/serve") in the background, with the log $STATE/server.log"
  [[ -n $DRY_RUN ]] && return
  nohup "$STATE/serve" </dev/null >"$STATE/server.log" 2>&1 &
  echo $! >"$STATE/server.pid"
}

start_at_boot() {
  local file=$HOME/.termux/boot/quantkit-$RUNTIME text
  text="#!$PREFIX/bin/sh"$'\n'"$MARK"
  [[ -z $WAKE_LOCK ]] || text+=$'\n'"termux-wake-lock"
  if [[ -n $SERVICE ]]; then
    text+=$'\n'". $PREFIX/etc/profile.d/start-services.sh"
  else
    text+=$'\n'"$(printf 'nohup %q </dev/null >%q 2>&1 &' "$STATE/serve" "$STATE/server.log")"
  fi
  same "$file" "$text" && return
  record boot "$file"
  folder "${file%/*}"
  put "$file" 700 "$text"
  say 'The start at boot needs the app Termux:Boot; open it once.'
}

wait_for_server() {
  [[ -n $DRY_RUN ]] && say "+ wait until http://$HOST answers" && return
  local end=$((SECONDS + WAIT))
  while ((SECONDS < end)); do
    answers && say 'The server answers.' && return
    sleep 0.2
  done
  local log=$LOGDIR/sv/$RUNTIME/current
  [[ -f $log ]] || log=$STATE/server.log
  [[ ! -f $log ]] || tail -n 5 "$log" >&2
  die "the server does not answer after $WAIT seconds; its log is $log"
}

# ---- Ollama's model

make_model() {
  [[ -n $NAME ]] || return 0
  local from=$NAME text
  if [[ -n $GGUF ]]; then
    LOCAL_NAME=$NAME from=./model.gguf
  else
    # A second model with the same weights and the parameters for this phone.
    local tag='' base=${NAME##*/}
    [[ $base == *:* ]] && tag=:${base#*:}
    LOCAL_NAME=${base%%:*}-phone$tag
  fi
  text="PARAMETER num_ctx $N_CTX"$'\n'"PARAMETER num_batch $N_BATCH"$'\n'"PARAMETER num_thread $THREADS"
  [[ -z $MODELFILE ]] || text+=$'\n'$MODELFILE
  local modelfile=$STATE/Modelfile
  if is_present && has_model "$LOCAL_NAME"; then
    if [[ $(tail -n +2 "$modelfile" 2>/dev/null) == "$text" ]]; then
      say "The model $LOCAL_NAME already exists."
      return
    fi
    # The same weights with other parameters.
    from=$LOCAL_NAME
  fi
  if [[ -z $GGUF ]]; then
    step "The model $NAME"
    # --uninstall must not remove a model that the user already had.
    has_model "$NAME" || record model "$NAME"
    pull
  elif [[ $from == ./model.gguf && ! -e $FILE && -z $DRY_RUN ]]; then
    # The user removed the model.
    run rm -f "$STATE/present"
    ask_source
    check_space
    fetch_gguf
  fi
  step "The model $LOCAL_NAME, with the parameters for this phone"
  put "$modelfile" 600 "FROM $from"$'\n'"$text"
  has_model "$LOCAL_NAME" || record model "$LOCAL_NAME"
  run ollama create "$LOCAL_NAME" -f "$modelfile" || die "Ollama could not create $LOCAL_NAME; its message is above"
  put "$STATE/present" 600 "$(identity)"
  # Ollama has a copy of the GGUF.
  if [[ $from == ./model.gguf ]]; then run rm -f "$FILE" "$FILE.from"; fi
}

has_model() { command -v ollama >/dev/null && ollama show "$1" </dev/null >/dev/null 2>&1; }

pull() {
  local try
  for try in 1 2 3; do
    run ollama pull "$NAME" && return
    ((try == 3)) || sleep "$PAUSE"
  done
  die "Ollama could not pull $NAME; check the network and run this again to resume"
}

# ---- the end

show_commands() {
  step 'To chat'
  if [[ $RUNTIME != ollama ]]; then
    say "  open http://127.0.0.1:$LLAMA_PORT in the phone's browser, or"
    say "  llama-cli -m $(printf %q "$FILE") -c $N_CTX -t $THREADS"
  elif [[ -z $NAME ]]; then
    say '  ollama run NAMESPACE/MODEL:TAG'
  else
    say "  ollama run $LOCAL_NAME"
    say "  ollama run $LOCAL_NAME --nowordwrap     for Chinese, which Ollama wraps in wrong places"
  fi
  [[ -z $OURS ]] || say "
Android 12 and later stops background processes. In Android's settings, let Termux use the battery without limits. On
Android 14, enable \"Disable child process restrictions\" in the developer options. On older versions, run on a computer:
  adb shell settings put global settings_enable_monitor_phantom_procs false"
}

uninstall() {
  [[ -f $STATE/made ]] || {
    say 'There is nothing to remove.'
    return 0
  }
  step 'Removing what this script installed'
  local kind what
  local -a models=() packages=() folders=() links=() services=() boots=()
  local wake='' daemon=''
  while read -r kind what; do
    case $kind in
      model) models+=("$what") ;;
      package) packages+=("$what") ;;
      folder) folders=("$what" "${folders[@]}") ;;
      link) links+=("$what") ;;
      service) services+=("$what") ;;
      boot) boots+=("$what") ;;
      wake-lock) wake=1 ;;
      daemon) daemon=1 ;;
    esac
  done <"$STATE/made"
  RUNTIME=ollama
  if ((${#models[@]})) && command -v ollama >/dev/null; then
    answers || start_temporarily
    for what in "${models[@]}"; do run ollama rm "$what" || warn "$what could not be removed"; done
  fi
  for what in "${boots[@]}"; do run rm -f "$what"; done
  for what in "${services[@]}"; do
    if [[ -d $SVDIR/$what ]]; then
      # Moved first, because runit would start it again.
      run mv "$SVDIR/$what" "$SVDIR/.$what.gone"
      [[ ! -d $SVDIR/.$what.gone/supervise && -z $DRY_RUN ]] || quietly sv force-shutdown "$SVDIR/.$what.gone"
    fi
    run rm -rf "$SVDIR/.$what.gone" "$SVDIR/.$what.new" "$LOGDIR/sv/$what"
  done
  if [[ -f $STATE/server.pid ]]; then quietly kill "$(<"$STATE/server.pid")"; fi
  if [[ -n $daemon ]] && is_recorded package termux-services; then quietly service-daemon stop; fi
  for what in "${links[@]}"; do
    [[ ! -L $what ]] || run rm -f "$what"
  done
  if ((${#packages[@]})); then
    run env DEBIAN_FRONTEND=noninteractive pkg uninstall -y "${packages[@]}" ||
      warn "pkg could not remove ${packages[*]}"
    say '(pkg autoremove removes the dependencies of these packages)'
  fi
  if [[ -n $wake ]] && command -v termux-wake-unlock >/dev/null; then quietly termux-wake-unlock; fi
  if is_recorded folder "$HOME/.ollama"; then keep_or_remove_ollama; fi
  run rm -rf "$STATE"
  for what in "${folders[@]}"; do
    [[ ! -d $what ]] || run rmdir --ignore-fail-on-non-empty "$what"
  done
}

start_temporarily() {
  say '+ ollama serve, until its models are removed'
  [[ -n $DRY_RUN ]] && return
  OLLAMA_HOST=$HOST nohup ollama serve </dev/null >/dev/null 2>&1 &
  echo $! >"$STATE/server.pid"
  local end=$((SECONDS + WAIT))
  while ((SECONDS < end)); do
    answers && return
    sleep 0.2
  done
  warn 'the server does not start, so its models are not removed'
}

# Remove Ollama's folder, which this script created, unless the user pulled models since.
keep_or_remove_ollama() {
  local manifests=$HOME/.ollama/models/manifests
  if [[ -d $manifests && -n $(find "$manifests" -type f -print -quit) ]]; then
    warn "$HOME/.ollama stays: it has models that this script did not create"
  else
    run rm -rf "$HOME/.ollama"
  fi
}

main() {
  read_options "$@"
  guard
  if [[ -n $UNINSTALL ]]; then
    uninstall
    return
  fi
  check_phone
  if [[ -n $NAME ]]; then
    ask_source
    choose_context
    is_present || check_space
  else
    choose_context
    warn 'no model is given (--model or --gguf); only the server is set up'
  fi
  if [[ ! -d $STATE ]]; then
    step 'State'
    say "$STATE records what this script makes, for --uninstall."
    run mkdir "$STATE"
  fi
  [[ -d $HOME/.ollama ]] || OLLAMA_IS_NEW=1
  get_runtime
  if [[ $RUNTIME == ollama && -n ${OLLAMA_IS_NEW:-} ]]; then record folder "$HOME/.ollama"; fi
  FILE=$STATE/model.gguf
  fetch_gguf
  keep_running
  wait_for_server
  if [[ $RUNTIME == ollama ]]; then make_model; fi
  show_commands
}

main "$@"
