# Shared by the scripts: where the project lies, and the Debian packages that it needs.
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# need PACKAGE...: installs those that are missing.
need() {
  local missing=() package
  for package; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [[ ${#missing[@]} == 0 ]] && return
  echo "installing ${missing[*]}"
  local root=()
  [[ $(id -u) == 0 ]] || root=(sudo)
  "${root[@]}" apt-get -qq -o DPkg::Lock::Timeout=300 update >/dev/null
  DEBIAN_FRONTEND=noninteractive "${root[@]}" apt-get -qq -o DPkg::Lock::Timeout=300 install -y \
    --no-install-recommends "${missing[@]}" >/dev/null
}

need_to_build() {
  command -v swift >/dev/null || { echo "Swift 6.2 or newer is needed: see https://www.swift.org/install" >&2; exit 69; }
  need libssl-dev libsystemd-dev libcurl4-openssl-dev libcrypt-dev pkg-config
}

# free_port FIRST: a port on 127.0.0.1 at which nobody listens.
free_port() {
  local port=$1
  while (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
  echo "$port"
}

# until_true SECONDS COMMAND...: waits for a condition.
until_true() {
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    ((SECONDS < end)) || return 1
    sleep 0.1
  done
}

# release_binary: sets SSMTP_MAILER_BINARY to the release build, built now, unless it names another binary already.
release_binary() {
  if [[ -z ${SSMTP_MAILER_BINARY:-} ]]; then
    need_to_build
    (cd "$project" && swift build -c release --product ssmtp-mailer 2>&1 | tail -n 3)
    SSMTP_MAILER_BINARY=$(cd "$project" && swift build -c release --show-bin-path)/ssmtp-mailer
  fi
  export SSMTP_MAILER_BINARY
}
