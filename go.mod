module github.com/hedge-mesh/hedge

go 1.26.3

require (
	github.com/fsnotify/fsnotify v1.10.1 // the ACL file, the moment it is saved
	github.com/fxamacker/cbor/v2 v2.9.6 // control messages: strict limits, deterministic encoding
	github.com/gaissmai/bart v0.30.0 // longest-prefix match of addresses in the filter
	github.com/google/btree v1.1.2 // sorted maps whose copies share what did not change
	github.com/google/go-cmp v0.7.0 // tests: differences a person can read
	github.com/gorilla/websocket v1.5.3 // the control channel and the relay, through any HTTP(S) front
	github.com/huin/goupnp v1.3.1 // UPnP: ask the gateway to forward a port
	github.com/pion/stun/v3 v3.1.7 // how our address looks from outside (RFC 8489)
	github.com/rogpeppe/go-internal v1.16.0 // tests: scripts of the command line
	github.com/rs/zerolog v1.35.1 // logs, for people on a terminal and JSON elsewhere
	github.com/spf13/cobra v1.10.2 // the command line
	github.com/spf13/pflag v1.0.9 // its flags, each with an environment twin
	github.com/tailscale/hujson v0.0.0-20260727124030-b80ff77dac4f // the ACL file: JSON with comments, and their places
	github.com/vishvananda/netlink v1.3.1 // addresses, routes and rules of the TUN interface
	go.uber.org/goleak v1.3.0 // tests: every goroutine is waited for
	golang.org/x/crypto v0.58.0 // NaCl secretbox, for path probes
	golang.org/x/net v0.62.0 // sendmmsg and recvmmsg; tests: a SOCKS5 client
	golang.org/x/sync v0.24.0 // errgroup
	golang.org/x/sys v0.49.0 // socket options, netlink, peer credentials
	golang.org/x/term v0.47.0 // is this a terminal?
	golang.org/x/time v0.16.0 // token buckets of the relay
	golang.zx2c4.com/wireguard v0.0.0-20260522210424-ecfc5a8d5446 // WireGuard itself; its device is in node/device, patched
	gvisor.dev/gvisor v0.0.0-20260905035102-160fafc42237 // TCP/IP inside the process
	modernc.org/sqlite v1.55.0 // the coordinator's store, without cgo
	pgregory.net/rapid v1.3.0 // tests: laws that must hold of any input
	rsc.io/qr v0.2.0 // the join line as a QR code
)

require (
	github.com/dustin/go-humanize v1.0.1 // indirect
	github.com/google/uuid v1.6.0 // indirect
	github.com/inconshreveable/mousetrap v1.1.0 // indirect
	github.com/mattn/go-colorable v0.1.14 // indirect
	github.com/mattn/go-isatty v0.0.20 // indirect
	github.com/ncruces/go-strftime v1.0.0 // indirect
	github.com/pion/dtls/v3 v3.1.5 // indirect
	github.com/pion/logging v0.2.4 // indirect
	github.com/pion/transport/v4 v4.1.0 // indirect
	github.com/remyoudompheng/bigfft v0.0.0-20230129092748-24d4a6f8daec // indirect
	github.com/vishvananda/netns v0.0.5 // indirect
	github.com/wlynxg/anet v0.0.5 // indirect
	github.com/x448/float16 v0.8.4 // indirect
	golang.org/x/exp v0.0.0-20250711185948-6ae5c78190dc // indirect
	golang.org/x/tools v0.51.0 // indirect
	golang.zx2c4.com/wintun v0.0.0-20230126152724-0fa3db229ce2 // indirect
	modernc.org/libc v1.74.1 // indirect
	modernc.org/mathutil v1.7.1 // indirect
	modernc.org/memory v1.11.0 // indirect
)
