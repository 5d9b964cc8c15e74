// Package coordinator admits nodes to a mesh, compiles its policy, and tells each node its part of both.
//
//	/control ─▶ session ──▶ registry ──▶ store.Commit          (one writer, pure transitions, durable before told)
//	admin    ──────────────────┤
//	acl file ─▶ Parse, Test ───┤
//	                           ▼
//	                    snapshot, revision++ ──▶ for each node it concerns: Diff ──▶ session.Send ──▶ Ack
//
// Every change is a transition of the [registry]: a pure function from a snapshot and a request to a store
// transaction or a refusal. A change reaches exactly the nodes whose view it alters. What a session still has to be
// told is not a queue but a difference, so that a slow node costs what a fast one does and misses nothing.
package coordinator
