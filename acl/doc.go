// Package acl is Hedge's policy: an HuJSON file in the Tailscale policy language, and what it means.
//
//	policy.hujson ─ Parse ─ *Policy ─ Compile(policy, inventory) ─ *Program ─ View(node) ─ rules and sets
//
// [Parse] reports every error of a file at once, each with its place. [Compile] is a pure function: the same policy
// and inventory give the same program, byte for byte. Nothing is allowed unless a rule says so.
package acl
