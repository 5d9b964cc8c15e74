package acl

import "pgregory.net/rapid"

// Drafts and Mesh are for the tests outside the package.
var Drafts = rapid.Custom(func(t *rapid.T) string { return drafts.Draw(t, "draft").text(t) })

func Mesh() *Inventory { return mesh() }
