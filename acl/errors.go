package acl

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// The classes of errors in an ACL file. A class is for programs (exit codes, editors); a message is for people.
const (
	ClassSyntax             = "syntax"
	ClassUnknownField       = "unknown-field"
	ClassBadSelector        = "bad-selector"
	ClassUndefined          = "undefined-reference"
	ClassNotAllowedHere     = "selector-not-allowed-here"
	ClassBadPort            = "bad-port"
	ClassBadProto           = "bad-proto"
	ClassProtoPort          = "proto-port-mismatch"
	ClassEmptyRule          = "empty-rule"
	ClassBadAction          = "bad-action"
	ClassCapability         = "capability-name"
	ClassRecursiveGroup     = "recursive-group"
	ClassSelfSource         = "self-source"
	ClassDefaultRouteDst    = "default-route-dst"
	ClassInternetWithApp    = "internet-with-app"
	ClassSSHCombination     = "ssh-combination"
	ClassCheckPeriod        = "check-period"
	ClassIPPool             = "ip-pool"
	ClassTestShape          = "test-shape"
	ClassTestFailed         = "test-failed"
	ClassNeverBroken        = "never-broken" // a never that the rules do not keep
	ClassWindow             = "window"
	ClassInventory          = "inventory"   // of an inventory file
	ClassUnsupportedFeature = "unsupported" // part of the language that Hedge refuses rather than ignores
)

// maxErrors bounds what one file can make us remember and print.
const maxErrors = 100

// maxLine bounds the source line quoted with an error, in bytes.
const maxLine = 160

// Error is one thing wrong with an ACL file.
type Error struct {
	Pos   Pos    `json:"pos"`
	Class string `json:"class"`
	Msg   string `json:"msg"`
	Hint  string `json:"hint,omitempty"`  // what to do about it
	Line  string `json:"line,omitempty"`  // the source line, cut to a readable length round the column
	Caret int    `json:"caret,omitempty"` // where in Line the error is, in bytes from 0
}

// Error is the message with its place and class, on one line.
func (e Error) Error() string {
	s := fmt.Sprintf("%s: %s [%s]", e.Pos, e.Msg, e.Class)
	if e.Hint != "" {
		s += "; " + e.Hint
	}
	return s
}

// Render shows the error to a person: place, message, class, the source line with a caret, and the hint.
//
//	acl.hujson:4:24: tag "tag:wbe" is not defined [undefined-reference]
//	    {"action": "accept", "src": ["tag:wbe"], "dst": ["*:*"]},
//	                                 ^
//	  did you mean "tag:web"?
func (e Error) Render() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s [%s]\n", e.Pos, e.Msg, e.Class)
	if e.Line != "" {
		fmt.Fprintf(&b, "  %s\n  ", e.Line)
		for _, r := range e.Line[:min(max(e.Caret, 0), len(e.Line))] {
			if r != '\t' {
				r = ' '
			}
			b.WriteRune(r)
		}
		b.WriteString("^\n")
	}
	if e.Hint != "" {
		fmt.Fprintf(&b, "  %s\n", e.Hint)
	}
	return b.String()
}

// Errors are all the errors of a file, in the order of their places.
type Errors []Error

// Error lists every error, one a line.
func (es Errors) Error() string {
	s := make([]string, len(es))
	for i, e := range es {
		s[i] = e.Error()
	}
	return strings.Join(s, "\n")
}

// Render shows every error as [Error.Render] does.
func (es Errors) Render() string {
	var b strings.Builder
	for _, e := range es {
		b.WriteString(e.Render())
	}
	return b.String()
}

// Classes returns the classes that occur, sorted, each once.
func (es Errors) Classes() []string {
	var cs []string
	for _, e := range es {
		cs = append(cs, e.Class)
	}
	slices.Sort(cs)
	return slices.Compact(cs)
}

// Of returns the errors inside err, or nil.
func Of(err error) Errors {
	var es Errors
	errors.As(err, &es)
	return es
}

func (es Errors) sort() {
	slices.SortStableFunc(es, func(a, b Error) int {
		return cmp.Or(cmp.Compare(a.Pos.Line, b.Pos.Line), cmp.Compare(a.Pos.Col, b.Pos.Col))
	})
}
