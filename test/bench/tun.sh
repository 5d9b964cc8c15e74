#!/usr/bin/env bash
# Hedge on an interface of the host beside bare wireguard-go on its own, each over a veth between two network namespaces.
#
#   namespaces A, B   iperf3 -c ─ hedge0 ─ hedge ─ eth0 ═ eth0 ─ hedge ─ hedge0 ─ iperf3 -s
#   namespaces C, D   iperf3 -c ─ wg ─ wireguard-go ─ eth0 ═ eth0 ─ wireguard-go ─ wg ─ iperf3 -s
#
# Both are up all the time, with the same MTU inside unless told otherwise, and take turns within each round. What counts
# are the ratios of a round and their median. Needs root, iproute2, iperf3, wireguard-tools and python3.
#
#   test/bench/tun.sh [-r ROUNDS] [-t SECONDS] [-m MTU] [-M WIREGUARD-MTU] [-w WIRE-MTU] [-n RULES] [-b OTHER-HEDGE-BINARY] [-k]
#
# -m is the MTU of both tunnels' interfaces, -M that of wireguard-go's if another, -w that of the veths. With -b the
# baseline is another build of hedge instead of wireguard-go. -k keeps the namespaces until Enter.
set -euo pipefail
umask 077
rounds=5 secs=3 mtu=1280 other= wire=1500 rules=1000 base= keep=
while getopts r:t:m:M:w:n:b:k o; do case $o in
	r) rounds=$OPTARG ;; t) secs=$OPTARG ;; m) mtu=$OPTARG ;; M) other=$OPTARG ;; w) wire=$OPTARG ;; n) rules=$OPTARG ;; b) base=$(realpath "$OPTARG") ;; k) keep=1 ;; *) exit 2 ;;
esac; done
cd "$(dirname "$0")/../.."
dir=$(mktemp -d /tmp/hedge-tun-XXXX) id=hbt$$
A=$id-a B=$id-b C=$id-c D=$id-d
cleanup() {
	for n in $A $B $C $D; do ip netns pids $n 2>/dev/null | xargs -r kill -9 2>/dev/null || true; ip netns del $n 2>/dev/null || true; done
	rm -rf "$dir"
}
trap cleanup EXIT
export CGO_ENABLED=0
[ -n "${HEDGE:-}" ] && cp "$HEDGE" "$dir/hedge" || go build -trimpath -o "$dir/hedge" ./cmd/hedge
[ -n "$base" ] || go build -o "$dir/wireguard-go" golang.zx2c4.com/wireguard

# pair A B makes two namespaces on one veth.
pair() {
	local i=0 n
	ip netns add $1; ip netns add $2
	ip link add eth0 netns $1 type veth peer name eth0 netns $2
	for n in $1 $2; do i=$((i + 1)); ip -n $n addr add 10.9.0.$i/24 dev eth0; ip -n $n link set eth0 mtu $wire up; ip -n $n link set lo up; done
	ip netns exec $2 iperf3 -s -D >/dev/null
}

# up NAME HEDGE A B: a mesh of one hedge binary on two namespaces; the address of b goes to $dir/NAME.b
up() {
	local name=$1 bin=$2 A=$3 B=$4 port=7443 dev=hedge0
	mkdir -p "$dir/$name-hub"
	{ echo '{"acls": ['; for p in $(seq 5201 $((5200 + rules))); do echo "{\"action\": \"accept\", \"src\": [\"me@lab\"], \"dst\": [\"me@lab:$p\"]},"; done
	  echo '{"action": "accept", "proto": "icmp", "src": ["me@lab"], "dst": ["me@lab:*"]}]}'; } >"$dir/$name-hub/acl.hujson"
	HEDGE_STATE_DIR=$dir/$name-hub ip netns exec $A "$bin" coordinator --listen :$port --url https://10.9.0.1:$port >"$dir/$name-hub.log" 2>&1 &
	local admin="ip netns exec $A env HEDGE_STATE_DIR=$dir/$name-hub $bin admin"
	for _ in $(seq 100); do $admin status >/dev/null 2>&1 && break; sleep 0.1; done
	$admin user create me@lab >/dev/null
	for n in a b; do
		local key; key=$($admin join-key create --json --user me@lab | python3 -c 'import json,sys; print(json.load(sys.stdin)["join"])')
		local ns=$A; [ $n = b ] && ns=$B
		echo "$key" | HEDGE_STATE_DIR=$dir/$name-$n ip netns exec $ns "$bin" up --tun=on --tun-name $dev --proxy off --name $n --join-file - >/dev/null
		HEDGE_STATE_DIR=$dir/$name-$n ip netns exec $ns "$bin" status --json >"$dir/s"
		python3 -c 'import json,sys; s=json.load(open(sys.argv[1])); print(s["addrs"][0])' "$dir/s" >"$dir/$name.$n"
		python3 -c 'import json,sys; s=json.load(open(sys.argv[1])); print(s["pid"])' "$dir/s" >>"$dir/$name.pids"
		ip -n $ns link set $dev mtu $mtu
	done
	for _ in $(seq 20); do HEDGE_STATE_DIR=$dir/$name-a ip netns exec $A "$bin" ping b -c 1 | grep -q direct && break; sleep 0.5; done
	ip netns exec $A ping -q -c 3 -i 0.5 "$(cat "$dir/$name.b")" >/dev/null || { echo "$name: no way through" >&2; exit 1; }
}

pair $A $B
pair $C $D # of its own, or Hedge would find a way to its peer through the other's tunnel
if [ -n "$base" ]; then
	up base "$base" $C $D
else
	# wireguard-go's control socket is named by its interface, for all namespaces alike: so they have different names
	i=0; for n in $C $D; do
		i=$((i + 1)); WG_PROCESS_FOREGROUND=1 setsid ip netns exec $n "$dir/wireguard-go" -f wg$$$i >"$dir/wg$i.log" 2>&1 &
		echo $! >>"$dir/base.pids"; wg genkey >"$dir/k$i"; wg pubkey <"$dir/k$i" >"$dir/p$i"
	done
	i=0; for n in $C $D; do
		i=$((i + 1)); o=$((3 - i))
		for _ in $(seq 50); do [ -S /var/run/wireguard/wg$$$i.sock ] && break; sleep 0.1; done
		ip netns exec $n wg set wg$$$i private-key "$dir/k$i" listen-port 51820 peer "$(cat "$dir/p$o")" endpoint 10.9.0.$o:51820 allowed-ips 10.8.0.$o/32
		ip -n $n addr add 10.8.0.$i/24 dev wg$$$i; ip -n $n link set wg$$$i mtu ${other:-$mtu} up
	done
	echo 10.8.0.2 >"$dir/base.b"
	ip netns exec $C ping -q -c 2 10.8.0.2 >/dev/null
fi
up hedge "$dir/hedge" $A $B
[ -z "$keep" ] || { echo "namespaces $A and $B, state in $dir; Enter goes on"; read -r; }
DIR=$dir A=$A C=$C ROUNDS=$rounds SECS=$secs python3 - <<'PY'
import json, os, re, statistics as st, subprocess, sys, time
d, ns, rounds, secs = os.environ["DIR"], {"hedge": os.environ["A"], "base": os.environ["C"]}, int(os.environ["ROUNDS"]), os.environ["SECS"]
addr = {w: open(f"{d}/{w}.b").read().strip() for w in ("base", "hedge")}
pids = {w: open(f"{d}/{w}.pids").read().split() for w in ("base", "hedge")}
tick = os.sysconf("SC_CLK_TCK")
def cpu(w):
    t = [open(f"/proc/{p}/stat").read().rsplit(")", 1)[1].split()[11:13] for p in pids[w]]
    return [sum(int(x[i]) for x in t) / tick for i in (0, 1)] # user, system
def rss(w): return sum(int(re.search(r"VmRSS:\s+(\d+)", open(f"/proc/{p}/status").read())[1]) for p in pids[w]) / 1024
def iperf(w, *args):
    for _ in range(20):
        c = cpu(w)
        e = json.loads(subprocess.run(["ip", "netns", "exec", ns[w], "iperf3", "-J", "-c", addr[w], "-t", secs, *args], capture_output=True, text=True).stdout)
        if "busy" not in e.get("error", ""): break
        time.sleep(0.2) # the server is still ending the test before
    if "error" in e: sys.exit(f"{w}: iperf3: {e['error']}")
    s = e["end"].get("sum_received") or e["end"]["sum"]
    user, system = (max(b - a, 1 / tick) / (s["bytes"] / 1e9) for a, b in zip(c, cpu(w)))
    return {"Gbit/s": s["bits_per_second"] / 1e9, "s/GB": user + system, "user s/GB": user, "system s/GB": system}
def ping(w):
    out = subprocess.run(["ip", "netns", "exec", ns[w], "ping", "-q", "-c", "300", "-i", "0.005", addr[w]], capture_output=True, text=True).stdout
    m = re.search(r"= ([\d.]+)/([\d.]+)/([\d.]+)", out)
    return {"ping ms": float(m[2])}
tests = [("TCP 1", lambda w: iperf(w)), ("TCP 1 back", lambda w: iperf(w, "-R")), ("TCP 8", lambda w: iperf(w, "-P", "8")),
         ("TCP 8 back", lambda w: iperf(w, "-P", "8", "-R")), ("ping", ping)]
if os.environ.get("ONLY"): tests = [t for t in tests if t[0] in os.environ["ONLY"].split(",")]
got = {}
for r in range(rounds):
    for name, f in tests:
        order = ["base", "hedge"] if r % 2 == 0 else ["hedge", "base"]
        res = {w: f(w) for w in order}
        for k in res["base"]:
            for w in order: got.setdefault((name, k, w), []).append(res[w][k])
            if res["base"][k]: got.setdefault((name, k, "ratio"), []).append(res["hedge"][k] / res["base"][k])
    print(f"round {r+1} of {rounds}", file=sys.stderr)
fmt = lambda v: f"{st.median(v):8.3f} [{min(v):.3f} {max(v):.3f}]"
print(f"{'':22} {'hedge':28} {'baseline':28} ratio")
for (name, k, w) in got:
    if w == "ratio": print(f"{name+' '+k:22} {fmt(got[name,k,'hedge']):28} {fmt(got[name,k,'base']):28} {fmt(got[name,k,'ratio'])}")
print(f"resident memory, both ends, MB: hedge {rss('hedge'):.0f}, baseline {rss('base'):.0f}")
PY
