// Command bench measures Hedge beside baselines in the same run, in turns, and prints ratios:
//
//	make bench                                   everything, with baselines, about twenty minutes
//	make bench ARGS=-quick                       about two minutes
//	go run ./test/bench -against main            this tree beside another revision, or beside a binary of hedge
//	go run ./test/bench -help
//
//	bench ──┬── netstack   two nodes in one process ─ wireguard-go with its netstack ─ two stacks ─ the cipher   (process)
//	        ├── scale      the same with 1, 100 and 10,000 rules and peers                                       (process)
//	        ├── hosts      hedge up, with an interface and without ─ wireguard-go ─ the wire ─ what -baselines says  (hosts)
//	        ├── relayed    the same by relay only, beside the direct way                                         (hosts)
//	        └── relay      hedge relay ─ derper                                                                  (relays)
//	              │
//	              └──▶ report ──▶ tables, markdown, JSON
//
// What the machine lacks (root, iperf3, the module proxy) is left out, and the report says so. hosts and relayed need root.
//
// To look into one world, run it by hand: requests come in on stdin as JSON, one a line.
//
//	echo '{"test":"tcp","streams":1,"ms":5000}' | go run ./test/bench -world hedge -profile cpu.pprof
package main
