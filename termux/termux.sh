#!/data/data/com.termux/files/usr/bin/bash
# From a bare Termux on an Android phone to a running model. It can be read, saved and run, or piped:
#
#     curl -fsSL ADDRESS/termux.sh | bash
#     curl -fsSL ADDRESS/termux.sh | bash -s -- --model NAMESPACE/MODEL:TAG --dry-run
#
# What it does, each step printed before it happens:
#   1. looks: is this Termux on a 64-bit ARM phone, which cores, how much memory, how much free space
#   2. refuses, before anything is fetched, what would not fit
#   3. installs a runtime: the package ollama; else, for a GGUF, the package llama-cpp; else Ollama from source
#   4. fetches the model, taking up a download that broke off
#   5. keeps the server running: a runit service, a wake lock, a start at boot; each can be left out
#   6. says how to chat
# Run again it finds what is done. --uninstall takes away what it made, and nothing else. --help has the options.
#
# It has been tested with bash, curl and runit on Linux in a stand-in for Termux; on Android itself it has not.

set -euo pipefail

# >>> settings, filled in by `quantkit termux`
# Ollama's name of the model: what is pulled, or what the GGUF becomes.
NAME=''
# Address of a GGUF, or its file name on the phone; where there is none, NAME is pulled.
# shellcheck disable=SC1003,SC2016
GGUF=''
# Size of the model's file, and its sha256.
MODEL_BYTES=''
MODEL_SHA256=''
# CONTEXT:BATCH:BYTES, the memory that running takes at each, smallest first.
MEMORY=''
# The context to take; where there is none, by the phone's memory.
CTX=''
# Lines of the Modelfile beside FROM, num_ctx, num_batch and num_thread.
# shellcheck disable=SC1003,SC2016
MODELFILE=''
# The same parameters as llama.cpp has them.
LLAMA_FLAGS=''
# <<< settings

# GIGABYTES:CONTEXT:BATCH, the most that a phone sold with so much memory is given (quantkit/planning/phones.py).
PHONES='4:2048:128 6:4096:256 8:4096:512 12:8192:512'
SMALLER_PHONE='1024:128'
# Assumed: Android and its services keep a tenth of the memory and 2 GiB.
ANDROID_KIB=2097152
ANDROID_TENTHS=1
# Used where quantkit gave no figures: without bytes, the contexts to choose from.
CONTEXTS='1024:128:0 2048:128:0 4096:256:0 4096:512:0 8192:512:0'
# Beside the weights, where only their size is known.
BESIDE_WEIGHTS=500000000
# What the packages take, and what building Ollama takes.
PACKAGES_BYTES=300000000
BUILD_BYTES=6000000000
OLLAMA_SOURCE='https://github.com/ollama/ollama'
OLLAMA_TAG='v0.31.1'

# Where to look; the tests look elsewhere.
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

usage() {
  cat <<'END'
usage: termux.sh [options]

  --model NAME        pull this model with Ollama: NAMESPACE/MODEL:TAG
  --gguf URL|FILE     fetch this GGUF, or take the file of that name on the phone
  --size BYTES        its size, where the script does not know it
  --sha256 HEX        its sha256
  --ram BYTES         memory that running it takes
  --ctx N             context, instead of what the phone's memory allows
  --threads N         threads, instead of the number of big cores
  --use WAY           auto, ollama, llama.cpp or source
  --gpu vulkan|opencl also install a GPU backend (not tested; Adreno 660 is known to answer nonsense)
  --no-service        start the server once, without a runit service
  --no-wake-lock      let Android sleep
  --no-boot           do not start at boot
  --anyway            go on where memory or space looks too little
  --dry-run           print every step, change nothing
  --uninstall         take away what this script made
END
}

say() { printf '%s\n' "$*"; }
step() { printf '\n== %s\n' "$*"; }
warn() { printf 'note: %s\n' "$*" >&2; }

die() {
  printf 'termux.sh: %s\n' "$*" >&2
  exit 1
}

wrong() {
  printf 'termux.sh: %s\n' "$*" >&2
  exit 2
}

# Print a command, then run it. Its stdin is not ours: piped into bash, that is this script.
run() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
  [[ -n $DRY_RUN ]] || "$@" </dev/null
}

# The same, of a command that tells nothing worth reading.
quietly() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
  [[ -n $DRY_RUN ]] || "$@" </dev/null >/dev/null 2>&1 || true
}

# put FILE MODE TEXT: print what is written, then write it whole or not at all.
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

# folder DIR: make it, noting every folder that was not there, so that --uninstall can take the empty ones away.
folder() {
  [[ -d $1 ]] && return
  folder "$(dirname "$1")"
  made folder "$1"
  [[ -d $1 ]] || run mkdir "$1"
}

# Note what is about to be made, so that --uninstall knows even after a kill in the middle.
made() {
  [[ -n $DRY_RUN ]] && return
  was_made "$@" || printf '%s\n' "$*" >>"$STATE/made"
}

was_made() { [[ -f $STATE/made ]] && grep -qxF -- "$*" "$STATE/made"; }

gb() {
  local tens=$((($1 + 5000000) / 10000000))
  printf '%d.%02d GB' $((tens / 100)) $((tens % 100))
}

size_of() { if [[ -f $1 ]]; then stat -L -c %s "$1"; else echo 0; fi; }
installed() { dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q 'ok installed'; }
whole() { [[ $2 =~ ^[1-9][0-9]{0,15}$ ]] || wrong "$1 takes a whole number, not '$2'"; }

read_options() {
  local each
  for each in "$@"; do
    # Another model than the one filled in: its figures do not hold.
    if [[ $each == --model || $each == --gguf ]]; then
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
      *) wrong "there is no option '$1'; --help lists them" ;;
    esac
    shift
  done
  [[ $WAY =~ ^(auto|ollama|llama\.cpp|source)$ ]] || wrong "--use takes auto, ollama, llama.cpp or source, not '$WAY'"
  [[ -z $GPU || $GPU =~ ^(vulkan|opencl)$ ]] || wrong "--gpu takes vulkan or opencl, not '$GPU'"
  [[ -z $MODEL_SHA256 || $MODEL_SHA256 =~ ^[0-9a-f]{64}$ ]] || wrong "--sha256 takes 64 hexadecimal digits"
  [[ -z $NAME || $NAME =~ ^[A-Za-z0-9_][A-Za-z0-9._:/-]*$ ]] || wrong "'$NAME' is no model's name"
  [[ $GGUF != *[[:cntrl:]]* ]] || wrong "the GGUF's address has control characters"
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

# ---- what phone this is

guard() {
  if [[ -z ${PREFIX:-} || ! -d $PREFIX || -z ${HOME:-} ]] || ! command -v pkg >/dev/null; then
    die "this is not Termux (\$PREFIX or pkg is missing); run it in the Termux app on an Android phone"
  fi
  local machine
  machine=$(uname -m)
  [[ $machine == aarch64 || $machine == arm64 ]] ||
    die "this processor is $machine, and Termux has Ollama and llama.cpp for aarch64 only"
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

# The big cores: all but those of the slowest cluster. Where there is one cluster, all. A slowest cluster that the
# kernel rates at 6/10 of the fastest or more is no small one (phones of big cores only) and counts as well.
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
    # Not told: half of them is right on most phones.
    all=$(nproc 2>/dev/null || echo 2)
    BIG_CORES=$((all > 2 ? all / 2 : all))
    CORES="$all cores, speeds not told"
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

look() {
  step 'This phone'
  count_big_cores
  [[ -n $THREADS ]] || THREADS=$BIG_CORES
  TOTAL_KIB=$(meminfo MemTotal)
  AVAILABLE=$(($(meminfo MemAvailable) * 1024))
  ((TOTAL_KIB > 0)) || die "$PROC/meminfo does not tell how much memory there is"
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
  [[ $free =~ ^[0-9]+$ ]] || die "df does not tell how much space is free in $HOME"
  echo $((free * 1024))
}

# ---- what the model needs

# The most context and batch for a phone of so much memory: the kernel has up to 15 % less than what it was sold with.
phone_limits() {
  local phone limit=$SMALLER_PHONE
  for phone in $PHONES; do
    ((${phone%%:*} * 1048576 * 85 / 100 <= TOTAL_KIB)) && limit=${phone#*:}
  done
  MOST_CTX=${limit%:*} MOST_BATCH=${limit#*:}
}

# The largest context and batch that this phone may have and whose memory there is room for.
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
  [[ -n $least ]] || wrong "this script knows what these contexts take:$contexts;" \
    "for $CTX have it written anew by quantkit termux --ctx $CTX"
  IFS=: read -r ctx batch bytes <<<"$least"
  if [[ -z $N_CTX && -n $ANYWAY ]]; then N_CTX=$ctx N_BATCH=$batch NEED=$bytes; fi
  [[ -n $N_CTX ]] ||
    die "the model needs $(gb "$bytes") of memory at a context of $ctx, and this phone has room for $(gb "$ROOM");" \
      "take a smaller model or type (--anyway tries it)"
  if ((NEED == 0)); then
    say "needs:   a memory that is not known; context $N_CTX, batch $N_BATCH"
  else
    say "needs:   $(gb "$NEED") of memory with a context of $N_CTX, batch $N_BATCH"
    ((NEED <= AVAILABLE)) ||
      warn "$(gb "$AVAILABLE") of memory are available just now: close other apps, or Android may end Termux"
  fi
}

# What is asked for, what quantkit reckoned, or the weights and something beside; 0 if nothing is known.
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

# What a name stands for is in the registry's manifest: the sizes of its layers.
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
    404) die "${base#*://} has no model $NAME; look at the name and the tag" ;;
  esac
  if ((total > 0)); then
    MODEL_BYTES=$total
  elif [[ -z $MODEL_BYTES ]]; then
    warn "${base#*://} does not tell the size of $NAME, so memory and space are not checked (--size and --ram give them)"
  fi
}

no_network() {
  local host=${1#*://}
  die "no network: ${host%%/*} does not answer (curl's error $2); connect the phone and run this again," \
    "it goes on from where it is"
}

# The file of that name, where phones keep what is downloaded or pushed to them.
find_file() {
  local place
  local name=${GGUF##*/}
  for place in "$GGUF" "$HOME/$name" "$HOME/storage/downloads/$name" "/sdcard/Download/$name"; do
    if [[ -f $place ]]; then
      LOCAL_FILE=$(realpath "$place")
      return
    fi
  done
  die "there is no file $name here, in $HOME or in the phone's Download folder; copy it there," \
    "or give its address with --gguf URL"
}

# Size and reachability of what will be fetched.
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
      22) die "$GGUF is not there, or may not be read: the server refuses it" ;;
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
      die "$LOCAL_FILE has $(size_of "$LOCAL_FILE") bytes and should have $MODEL_BYTES; copy it again"
    MODEL_BYTES=$(size_of "$LOCAL_FILE")
  fi
}

check_space() {
  local bytes=${MODEL_BYTES:-0} need=0
  if [[ -z $GGUF ]]; then
    need=$bytes
  else
    is_url "$GGUF" && need=$((bytes - $(size_of "$STATE/model.gguf.part")))
    # Ollama keeps a copy of its own.
    [[ $WAY == llama.cpp ]] || need=$((need + bytes))
  fi
  command -v ollama >/dev/null || command -v llama-server >/dev/null || need=$((need + PACKAGES_BYTES))
  ((need <= FREE)) || [[ -n $ANYWAY ]] ||
    die "this takes $(gb "$need") of space and $(gb "$FREE") are free;" \
      "free $(gb $((need - FREE))) more (--anyway tries it)"
  say "takes:   $(gb "$need") of space"
}

# ---- the runtime

# Install packages that are not there. Returns pkg's failure.
install() {
  local each missing=()
  for each in "$@"; do installed "$each" || missing+=("$each"); done
  ((${#missing[@]})) || return 0
  for each in "${missing[@]}"; do made package "$each"; done
  run env DEBIAN_FRONTEND=noninteractive pkg install -y "${missing[@]}" && return
  # What was not installed is not ours to take away.
  for each in "${missing[@]}"; do installed "$each" || unmake package "$each"; done
  return 1
}

unmake() {
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
    warn "the GPU backend could not be installed; the processor does the work"
}

with_llama_cpp() {
  [[ -n $GGUF ]] || {
    say "(llama.cpp cannot pull $NAME: for it a GGUF must be given with --gguf)"
    return 1
  }
  RUNTIME=llama-server
  if ! command -v llama-server >/dev/null; then install llama-cpp || return 1; fi
  works llama-server || return 1
  [[ -z $GPU ]] || install "llama-cpp-backend-$GPU" vulkan-loader-generic mesa-vulkan-icd-freedreno ||
    warn "the GPU backend could not be installed; the processor does the work"
}

with_source() {
  RUNTIME=ollama
  local source=$STATE/ollama-source
  ((BUILD_BYTES <= FREE)) || [[ -n $ANYWAY ]] || {
    say "(building Ollama takes about $(gb $BUILD_BYTES) of space, $(gb "$FREE") are free)"
    return 1
  }
  install golang git cmake ninja clang libandroid-spawn || return 1
  # A tree of another version, or half a clone, is no use.
  if [[ -d $source && ! -f $source/.cloned-$OLLAMA_TAG ]]; then run rm -rf "$source" || return 1; fi
  if [[ ! -d $source ]]; then
    run git clone --depth 1 --branch "$OLLAMA_TAG" "$OLLAMA_SOURCE" "$source" || return 1
    run touch "$source/.cloned-$OLLAMA_TAG" || return 1
  fi
  run cmake -S "$source" -B "$source/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DGGML_BACKEND_DL=ON -DGGML_CPU_ALL_VARIANTS=ON -DGGML_OPENMP=OFF \
    -DCMAKE_EXE_LINKER_FLAGS=-landroid-spawn -DCMAKE_SHARED_LINKER_FLAGS=-landroid-spawn || return 1
  # Each compiler takes up to a gigabyte: no more of them than big cores.
  run cmake --build "$source/build" --parallel "$THREADS" || return 1
  [[ -n $DRY_RUN || -x $source/ollama ]] || return 1
  made link "$PREFIX/bin/ollama"
  # Beside its libraries, which it looks for from where it is.
  run ln -sf "$source/ollama" "$PREFIX/bin/ollama" || return 1
  works ollama
}

get_runtime() {
  step 'A runtime'
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
      say "$RUNTIME it is."
      return
    fi
    warn "${way/_/.} could not be had on this phone"
  done
  die 'no runtime could be installed; look at what is said above, try "pkg update", see that there is a network,' \
    'and run this again'
}

# ---- the model

# What identifies the model that is wanted.
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
    say "$FILE is there already."
  else
    download
  fi
}

check_sha256() {
  [[ -n $MODEL_SHA256 && -z $DRY_RUN ]] || return 0
  say 'checking its sha256'
  [[ $(sha256sum <"$1") == "$MODEL_SHA256 "* ]]
}

download() {
  local part=$FILE.part had code idle=0
  # The rest of another file would be no good.
  same "$FILE.from" "$GGUF $MODEL_SHA256" || { [[ ! -e $part ]] || run rm -f "$part"; }
  put "$FILE.from" 600 "$GGUF $MODEL_SHA256"
  local show=-sS
  [[ ! -t 2 ]] || show=--progress-bar
  while :; do
    had=$(size_of "$part")
    [[ -n $MODEL_BYTES ]] && ((had > MODEL_BYTES)) && run rm -f "$part" && had=0
    if [[ -n $MODEL_BYTES ]] && ((had == MODEL_BYTES)); then break; fi
    ((had == 0)) || say "going on from $(gb "$had")"
    code=0
    run curl -fL "$show" --connect-timeout 20 --speed-limit 1000 --speed-time 60 -C - -o "$part" -- "$GGUF" || code=$?
    [[ -n $DRY_RUN ]] && break
    case $code in
      0) [[ -n $MODEL_BYTES ]] || break ;;
      22) die "the server no longer gives $GGUF" ;;
      33) run rm -f "$part" ;; # It cannot go on in the middle.
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
    die "what $GGUF gave has not the sha256 $MODEL_SHA256; run this again," \
      "and if that does not help, the file there is another one"
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
    say 'A server answers already; it is used as it is.'
    OURS=''
    return
  fi
  if [[ -n $WAKE_LOCK ]] && command -v termux-wake-lock >/dev/null; then
    made wake-lock
    run termux-wake-lock || warn 'the wake lock could not be taken'
  fi
  if [[ -n $SERVICE ]] && ! install termux-services; then
    warn 'termux-services could not be installed; the server is started without a service'
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
    say "The service $service is not this script's and stays as it is."
  elif same "$service/run" "$script"; then
    say 'The service is there already.'
  elif [[ -d $service ]]; then
    put "$service/run" 700 "$script"
    run sv restart "$service" || true
  else
    folder "$SVDIR"
    folder "$LOGDIR/sv"
    run mkdir -p "$LOGDIR/sv/$RUNTIME"
    # Made under a name that runit does not look at, then renamed: it must not see half a service.
    local new=$SVDIR/.$RUNTIME.new
    made service "$RUNTIME"
    run rm -rf "$new"
    run mkdir -p "$new/log"
    put "$new/run" 700 "$script"
    put "$new/log/run" 700 "$log"
    run mv "$new" "$service"
  fi
  [[ ! -f $service/down ]] || run rm -f "$service/down"
  # Says nothing and does nothing where the daemon runs.
  made daemon
  quietly service-daemon start
  # Where it was stopped by hand; runit finds a new one by itself within five seconds.
  [[ -n $DRY_RUN || ! -d $service/supervise ]] || run sv up "$service" || true
}

start_once() {
  put "$STATE/serve" 700 "#!$PREFIX/bin/sh"$'\n'"$MARK"$'\n'"$(server_environment)"$'\n'"exec $(server_command)"
  say "+ $(printf '%q' "$STATE/serve") in the background, what it says goes to $STATE/server.log"
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
  made boot "$file"
  folder "${file%/*}"
  put "$file" 700 "$text"
  say 'This takes effect with the app Termux:Boot, opened once.'
}

wait_for_server() {
  [[ -n $DRY_RUN ]] && say "+ wait until http://$HOST answers" && return
  local end=$((SECONDS + WAIT))
  while ((SECONDS < end)); do
    answers && say 'It answers.' && return
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
    # On this phone a model of its own name, of the same weights, that knows its cores and memory.
    local tag='' base=${NAME##*/}
    [[ $base == *:* ]] && tag=:${base#*:}
    LOCAL_NAME=${base%%:*}-phone$tag
  fi
  text="PARAMETER num_ctx $N_CTX"$'\n'"PARAMETER num_batch $N_BATCH"$'\n'"PARAMETER num_thread $THREADS"
  [[ -z $MODELFILE ]] || text+=$'\n'$MODELFILE
  local modelfile=$STATE/Modelfile
  if is_present && has_model "$LOCAL_NAME"; then
    if [[ $(tail -n +2 "$modelfile" 2>/dev/null) == "$text" ]]; then
      say "The model $LOCAL_NAME is there already."
      return
    fi
    # Of the same weights with other parameters.
    from=$LOCAL_NAME
  fi
  if [[ -z $GGUF ]]; then
    step "The model $NAME"
    # It may have been the user's before.
    has_model "$NAME" || made model "$NAME"
    pull
  elif [[ $from == ./model.gguf && ! -e $FILE && -z $DRY_RUN ]]; then
    # It was made once and then removed by hand.
    run rm -f "$STATE/present"
    ask_source
    check_space
    fetch_gguf
  fi
  step "The model $LOCAL_NAME, made for this phone"
  put "$modelfile" 600 "FROM $from"$'\n'"$text"
  has_model "$LOCAL_NAME" || made model "$LOCAL_NAME"
  run ollama create "$LOCAL_NAME" -f "$modelfile" || die "Ollama could not make $LOCAL_NAME; what it said is above"
  put "$STATE/present" 600 "$(identity)"
  # Ollama has its own copy now.
  if [[ $from == ./model.gguf ]]; then run rm -f "$FILE" "$FILE.from"; fi
}

has_model() { command -v ollama >/dev/null && ollama show "$1" </dev/null >/dev/null 2>&1; }

pull() {
  local try
  for try in 1 2 3; do
    run ollama pull "$NAME" && return
    ((try == 3)) || sleep "$PAUSE"
  done
  die "Ollama could not pull $NAME; with a network, run this again: it goes on from where it is"
}

# ---- the end

farewell() {
  step 'To chat'
  if [[ $RUNTIME != ollama ]]; then
    say "  open http://127.0.0.1:$LLAMA_PORT in the phone's browser, or"
    say "  llama-cli -m $(printf %q "$FILE") -c $N_CTX -t $THREADS"
  elif [[ -z $NAME ]]; then
    say '  ollama run NAMESPACE/MODEL:TAG'
  else
    say "  ollama run $LOCAL_NAME"
    say "  ollama run $LOCAL_NAME --nowordwrap     for Chinese, whose lines would break in the wrong places"
  fi
  [[ -z $OURS ]] || say "
Android 12 and later ends background processes. Let Termux use the battery without limits in Android's settings, and on
Android 14 turn on \"Disable child process restrictions\" among the developer options; before that, from a computer:
  adb shell settings put global settings_enable_monitor_phantom_procs false"
}

uninstall() {
  [[ -f $STATE/made ]] || {
    say 'There is nothing to take away.'
    return 0
  }
  step 'Taking away what this script made'
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
    answers || start_for_a_moment
    for what in "${models[@]}"; do run ollama rm "$what" || warn "$what could not be removed"; done
  fi
  for what in "${boots[@]}"; do run rm -f "$what"; done
  for what in "${services[@]}"; do
    if [[ -d $SVDIR/$what ]]; then
      # Moved away first, or runit would start it again.
      run mv "$SVDIR/$what" "$SVDIR/.$what.gone"
      [[ ! -d $SVDIR/.$what.gone/supervise && -z $DRY_RUN ]] || quietly sv force-shutdown "$SVDIR/.$what.gone"
    fi
    run rm -rf "$SVDIR/.$what.gone" "$SVDIR/.$what.new" "$LOGDIR/sv/$what"
  done
  if [[ -f $STATE/server.pid ]]; then quietly kill "$(<"$STATE/server.pid")"; fi
  if [[ -n $daemon ]] && was_made package termux-services; then quietly service-daemon stop; fi
  for what in "${links[@]}"; do
    [[ ! -L $what ]] || run rm -f "$what"
  done
  if ((${#packages[@]})); then
    run env DEBIAN_FRONTEND=noninteractive pkg uninstall -y "${packages[@]}" ||
      warn "pkg could not remove ${packages[*]}"
    say '(what these packages had brought with them, pkg autoremove takes away)'
  fi
  if [[ -n $wake ]] && command -v termux-wake-unlock >/dev/null; then quietly termux-wake-unlock; fi
  if was_made folder "$HOME/.ollama"; then keep_or_remove_ollama; fi
  run rm -rf "$STATE"
  for what in "${folders[@]}"; do
    [[ ! -d $what ]] || run rmdir --ignore-fail-on-non-empty "$what"
  done
}

start_for_a_moment() {
  say '+ ollama serve, until its models are removed'
  [[ -n $DRY_RUN ]] && return
  OLLAMA_HOST=$HOST nohup ollama serve </dev/null >/dev/null 2>&1 &
  echo $! >"$STATE/server.pid"
  local end=$((SECONDS + WAIT))
  while ((SECONDS < end)); do
    answers && return
    sleep 0.2
  done
  warn 'the server does not start'
}

# Ollama's own folder, if it was not there before: its keys, and models that someone else may have pulled since.
keep_or_remove_ollama() {
  local manifests=$HOME/.ollama/models/manifests
  if [[ -d $manifests && -n $(find "$manifests" -type f -print -quit) ]]; then
    warn "$HOME/.ollama stays: it holds models that this script did not make"
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
  look
  if [[ -n $NAME ]]; then
    ask_source
    choose_context
    is_present || check_space
  else
    choose_context
    warn 'no model is named (--model or --gguf); the server alone is set up'
  fi
  if [[ ! -d $STATE ]]; then
    step 'Notes'
    say "What is made is noted in $STATE, for --uninstall."
    run mkdir "$STATE"
  fi
  [[ -d $HOME/.ollama ]] || OLLAMA_IS_NEW=1
  get_runtime
  if [[ $RUNTIME == ollama && -n ${OLLAMA_IS_NEW:-} ]]; then made folder "$HOME/.ollama"; fi
  FILE=$STATE/model.gguf
  fetch_gguf
  keep_running
  wait_for_server
  if [[ $RUNTIME == ollama ]]; then make_model; fi
  farewell
}

main "$@"
