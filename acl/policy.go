package acl

import (
	"errors"
	"net/netip"
)

// Options say which language a file is read as.
type Options struct {
	// Compat reads the file as Tailscale's service would: no extra language, and a file that says nothing allows
	// everything. Only offline tools use it; what a mesh enforces is never parsed so.
	Compat bool
	// Domains are the mail domains of the mesh, for "user:*@domain". Without any, every domain but the shared ones
	// (gmail.com and the like) may be named; under Compat, none may.
	Domains []string
}

// Policy is a parsed and valid ACL file. It does not change, and may be used by many goroutines.
type Policy struct {
	file string
}

// Parse reads an ACL file. The error, if any, is an [Errors] that holds everything wrong with the file; file is
// its name as errors and rules should show it.
func Parse(file string, src []byte, opt Options) (*Policy, error) {
	return nil, errors.New("acl: parse is not written yet")
}

// Test runs the file's own tests against an inventory. A policy with failed tests must not be put into force.
func (p *Policy) Test(inv *Inventory) Errors { return nil }

// MayTag reports whether who, a login or a tag, may give a node the tag, by tagOwners. Roles are not known of a
// mere login; see [Policy.UserMayTag].
func (p *Policy) MayTag(who, tag string) bool { return p.UserMayTag(User{Login: who}, tag) }

// UserMayTag is MayTag for a user whose roles are known.
func (p *Policy) UserMayTag(u User, tag string) bool { return false }

// HasTag reports whether the file declares the tag, in tagOwners.
func (p *Policy) HasTag(tag string) bool { return false }

// Approves reports whether autoApprovers lets the node carry the route without an admin's word. owner is the
// record of the node's user, and may be nil.
func (p *Policy) Approves(n *Node, owner *User, route netip.Prefix) bool { return false }
