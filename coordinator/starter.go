package coordinator

import "strings"

// StarterPolicy is a commented policy file for a new mesh: each person's own devices reach each other, and nothing
// else. login is used in the examples.
func StarterPolicy(login string) string { return strings.ReplaceAll(starter, "LOGIN", login) }

const starter = `// Hedge's policy: who may reach what. Nothing is allowed unless a rule here says so.
// It is read again whenever it is saved; a file with a mistake is reported (hedge admin acl get), and the
// last good one stays in force. Check before you save: hedge acl check THIS-FILE
{
	// Names for people, to be used as src and dst.
	"groups": {
		// "group:eng": ["LOGIN"],
	},

	// Tags are for machines that belong to no one person. Who may give them:
	"tagOwners": {
		// "tag:web": ["LOGIN"],
		// "tag:db":  ["LOGIN"],
	},

	"acls": [
		// Each person's own devices reach each other.
		{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]},

		// The engineers reach the web servers, on two ports.
		// {"action": "accept", "src": ["group:eng"], "proto": "tcp", "dst": ["tag:web:80,443"]},

		// The web servers reach the database.
		// {"action": "accept", "src": ["tag:web"], "proto": "tcp", "dst": ["tag:db:5432"]},
	],

	// What must be so. A change that breaks one of these is refused.
	"tests": [
		// {"src": "LOGIN", "accept": ["tag:web:443"], "deny": ["tag:db:5432"]},
	],
}
`
