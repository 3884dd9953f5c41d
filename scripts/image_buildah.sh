# Sourced by image_test.sh: builds and runs images where there is no engine. Needs root, buildah and debootstrap (Debian).

export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=vfs
storage=${IMAGE_STORAGE:-$scratch}
buildah() { command buildah --root "$storage/images" --runroot "$storage/run" "$@"; }

# What this machine fetches packages with, read-only: certificates, apt's and pip's settings.
mounts=()
for path in /etc/ssl/certs /usr/local/share/ca-certificates /etc/apt/sources.list.d /etc/apt/apt.conf.d /etc/pip.conf; do
  if [ -e "$path" ]; then mounts+=(--volume "$path:$path:ro"); fi
done

prepare_buildah() {
  [ "$(id -u)" = 0 ] || fail "without a Docker engine this needs root, for buildah and debootstrap"
  if ! command -v debootstrap >/dev/null || ! type -P buildah >/dev/null; then
    command -v apt-get >/dev/null || fail "install buildah and debootstrap, or start a Docker engine"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq buildah debootstrap
  fi
  local mirror
  mirror=$(awk '/^URIs:/ { print $2; exit } /^deb / { print $2; exit }' /etc/apt/sources.list.d/*.sources /etc/apt/sources.list 2>/dev/null || true)
  # With certificates already there: their package would write where this machine's are mounted.
  debootstrap --variant=minbase --include=ca-certificates bookworm "$scratch/debian" $mirror >"$scratch/debootstrap.log" || fail "$(tail -3 "$scratch/debootstrap.log")"
  rm -rf "$scratch"/debian/var/cache/apt/archives/*.deb "$scratch"/debian/var/lib/apt/lists/* "$scratch"/debian/usr/share/{doc,man,locale}/*
  if ls /etc/apt/sources.list.d/*.sources >/dev/null 2>&1; then rm -f "$scratch/debian/etc/apt/sources.list"; fi
  base debian:bookworm-slim "$scratch/debian"
  # The toolchain where the official image has it.
  mkdir -p "$scratch"/rust/usr/local/rust
  cp -a "$(rustc --print sysroot)"/{bin,lib} "$scratch/rust/usr/local/rust"
  base rust:1.91-slim-bookworm "$scratch/debian" "$scratch/rust"
  rm -rf "$scratch"/{debian,rust}
}

# base NAME DIRECTORY...: an image of what lies in the directories, under the name that the Dockerfile has.
base() {
  local name=$1 container
  shift
  container=$(buildah from scratch)
  for directory; do buildah copy --quiet "$container" "$directory" / >/dev/null; done
  buildah config --env PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
  buildah commit --quiet --rm "$container" "docker.io/library/$name" >/dev/null
}

build_buildah() {
  buildah build --pull-never --format docker "${mounts[@]}" --target "$1" --tag "nibble:$1" .
}

size_buildah() {
  local container
  container=$(buildah from --pull-never "nibble:$1")
  du -sb "$(buildah mount "$container")" | cut -f1
  buildah rm "$container" >/dev/null
}

run_buildah() {
  local image=$1 models=$2 container entry status=0
  shift 2
  mkdir -p "$models"
  container=$(buildah from --pull-never "nibble:$image")
  entry=$(buildah inspect --format '{{index .Docker.Config.Entrypoint 0}}' "$container")
  # The network is the machine's here.
  buildah run --user "$uid:$uid" --volume "$models:/models" "$container" -- "$entry" "$@" || status=$?
  buildah rm "$container" >/dev/null
  return $status
}

# Nobody else is this user.
stop_buildah() { pkill -TERM --uid "$uid" -x nibble; }

cleanup_buildah() {
  buildah rm --all >/dev/null 2>&1 || true
  [ -n "${IMAGE_STORAGE:-}" ] || buildah rmi --all --force >/dev/null 2>&1 || true
}
