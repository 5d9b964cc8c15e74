package acl

import "net/netip"

// Program is a policy compiled against an inventory. It does not change, and may be used by many goroutines.
type Program struct {
	inv *Inventory
}

// Compile resolves a policy's rules against an inventory. The same policy and inventory give the same program, in
// whatever order the inventory lists its nodes and users.
func Compile(p *Policy, inv *Inventory) (*Program, error) { return &Program{inv: inv}, nil }

// View is what one node may know and must enforce. It is empty for a node the program does not know.
func (p *Program) View(id NodeID) View { return View{} }

// Check says whether src may open a flow to a destination, and which rule says so: the rule that admits it, or the
// deny rule that stops it, or nil when no rule covers it.
func (p *Program) Check(src NodeID, dst netip.Addr, port uint16, proto uint8) (rule *Rule, ok bool) {
	return nil, false
}

// Rules are all the rules of the program, in the order of the file, grants first.
func (p *Program) Rules() []Rule { return nil }

// Set returns the members of a set that a rule names.
func (p *Program) Set(name string) (Set, bool) { return Set{}, false }
