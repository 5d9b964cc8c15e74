// Package device is WireGuard: golang.zx2c4.com/wireguard/device at the version of go.mod, with a data path that runs to
// completion. What differs is in hedge.patch, and a test compares: to take a newer version, apply the patch to it.
//
// Of a batch of packets, there each goroutine hands to the next what it has done; here one does it all:
//
//	there  TUN ── read ──▶ encrypt, one for each core ──▶ send, one for each peer ──▶ Bind
//	       Bind ── receive ──▶ decrypt, one for each core ──▶ write, one for each peer ──▶ TUN
//	here   TUN ── read, encrypt, send ──▶ Bind            by one goroutine, or one for each function of a LanedTUN
//	       Bind ── receive, decrypt, write ──▶ TUN        by one for each of the Bind's receive functions
//
// So no packet waits between two steps, nobody has to be woken for each, and nothing has to bound what lies between:
// who reads is as fast as who sends. A batch stays in the buffers of its reader, or in memory that the TUN device or the Bind
// lends. Of packets that wait for a session copies are staged, with a bound for each peer and one for all (MaxStagedSize). A
// peer has no goroutines and no queue but of those. A receiver sends, too, so nobody may wait for one with a lock held that
// sending takes.
//
// Handshakes, timers, cookies, replay filters and the configuration protocol are WireGuard's own, untouched.
package device
