// Package acl is Hedge's policy: an HuJSON file in the Tailscale policy language, and what it means.
//
//	policy.hujson ─ Parse ─ *Policy ─ Compile(policy, inventory) ─ *Program ─ View(node) ─ rules and sets
//	                  │        ├─ Test(inventory)                     ├─ Check, Why, Reach
//	                Errors     └─ Lint, MayTag, Approves              └─ Diff(before, after)
//
// [Parse] reports every error of a file at once, each with its place. [Compile] is a pure function: the same policy
// and inventory give the same program, byte for byte. Nothing is allowed unless a rule says so.
//
// A rule names sets, and a set's members travel beside it:
//
//	{"action": "accept", "src": ["group:eng"], "dst": ["tag:db:5432"]}
//
//	Rule{Src: ["group:eng"], Dst: [{"tag:db", 5432}]}      the same for every node it concerns
//	Set "group:eng" = nodes 1 2 3, "tag:db" = node 6       cut to those that may know of each other
//
// Beyond Tailscale's language there are "deny" (it wins over every accept), & and ! in sources, "expires", "never"
// (proved of all nodes that could be), and "defaultAccess" for a file without rules. What is not built is refused
// with the class "unsupported", and never passed over.
//
// The language: https://tailscale.com/kb/1337/policy-syntax.
package acl
