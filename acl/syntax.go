package acl

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"sort"
	"strings"
	"unicode/utf8"

	"github.com/tailscale/hujson"
)

// Limits on a file, checked before the parser sees it: its recursion is as deep as the file says.
const (
	MaxSize  = 1 << 20 // bytes of a policy
	MaxDepth = 64      // of { and [ in each other

	maxInventory = 16 << 20 // bytes, of some 100,000 nodes
)

// value is a JSON value that knows where it stands.
type value struct {
	off    int     // in bytes from the start of the file
	kind   byte    // '{' '[' '"' '0' 't' 'f' 'n'
	str    string  // of a string, what it means; of a number, its digits
	fields []field // of an object
	elems  []value // of an array
	shape  *shape  // of a value that only asks what its readers want; see Schema
}

type field struct {
	name value
	val  value
}

// document is the text of a file, to say where things are in it.
type document struct {
	file  string
	src   []byte
	lines []int // offset of each line's first byte
}

// parser holds what is known of a file while it is read.
type parser struct {
	*document
	opt  Options
	most int // bytes that the file may have
	errs Errors
	more int // errors beyond maxErrors
	pol  *Policy
	// member is the first spelling of autogroup:member met; two in one file are refused.
	member string
}

func newParser(file string, src []byte, opt Options) *parser {
	d := &document{file: file, src: src, lines: []int{0}}
	for i, c := range src {
		if c == '\n' {
			d.lines = append(d.lines, i+1)
		}
	}
	return &parser{document: d, opt: opt, most: MaxSize}
}

// pos turns an offset into a line and column.
func (d *document) pos(off int) Pos {
	line := sort.SearchInts(d.lines, off+1)
	return Pos{File: d.file, Line: line, Col: off - d.lines[line-1] + 1}
}

// fail records an error; hint may be empty.
func (p *parser) fail(off int, class, hint, format string, args ...any) {
	if len(p.errs) >= maxErrors {
		p.more++
		return
	}
	p.errs = append(p.errs, p.error(off, class, hint, fmt.Sprintf(format, args...)))
}

// word records an error in one word; off is where the word's string stands.
func (p *parser) word(off int, err error) {
	var w *wordError
	if errors.As(err, &w) {
		p.fail(off, w.class, w.hint, "%s", w.msg)
		return
	}
	p.fail(off, ClassSyntax, "", "%s", err)
}

// error makes an Error of a place.
func (d *document) error(off int, class, hint, msg string) Error {
	e := Error{Pos: d.pos(off), Class: class, Msg: msg, Hint: hint}
	e.Line, e.Caret = d.quote(e.Pos.Line, off)
	return e
}

// quote returns the source line round off, at most maxLine bytes of it, and where in it off is.
func (d *document) quote(line, off int) (string, int) {
	start := d.lines[line-1]
	end := len(d.src)
	if line < len(d.lines) {
		end = d.lines[line] - 1
	}
	if end-start > maxLine {
		start = max(start, off-maxLine/2)
		end = min(end, start+maxLine)
		for start < off && !utf8.RuneStart(d.src[start]) {
			start++
		}
		for end > off && end < len(d.src) && !utf8.RuneStart(d.src[end]) {
			end--
		}
	}
	s := strings.ToValidUTF8(strings.TrimRight(string(d.src[start:end]), "\r"), "?")
	s = strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' || r == 0x7f {
			return '?'
		}
		return r
	}, s)
	return s, off - start
}

// result sorts the errors and says whether there are any.
func (p *parser) result() error {
	if len(p.errs) == 0 {
		return nil
	}
	p.errs.sort()
	if p.more > 0 {
		last := &p.errs[len(p.errs)-1]
		last.Hint = strings.TrimPrefix(fmt.Sprintf("%s; and %d more errors", last.Hint, p.more), "; ")
	}
	return p.errs
}

var syntaxError = regexp.MustCompile(`^hujson: line (\d+), column (\d+): `)

// parse reads the file's syntax, and reports false when there is nothing to go on with.
func (p *parser) parse() (root value, ok bool) {
	if len(p.src) > p.most {
		p.fail(0, ClassSyntax, "split the mesh, or name groups instead of listing people", "file has %d bytes, more than the %d allowed", len(p.src), p.most)
		return value{}, false
	}
	if !utf8.Valid(p.src) {
		off := 0
		for s := p.src; len(s) > 0; {
			r, n := utf8.DecodeRune(s)
			if r == utf8.RuneError && n == 1 {
				break
			}
			off, s = off+n, s[n:]
		}
		p.fail(off, ClassSyntax, "save the file as UTF-8", "file is not UTF-8")
		return value{}, false
	}
	if off, deep := tooDeep(p.src); deep {
		p.fail(off, ClassSyntax, "", "nested deeper than %d levels", MaxDepth)
		return value{}, false
	}
	if len(bytes.TrimSpace(p.src)) == 0 {
		if p.opt.Compat {
			return value{kind: '{'}, true
		}
		p.fail(0, ClassSyntax, emptyHint, "file is empty")
		return value{}, false
	}
	src := p.src
	if p.opt.Compat {
		src = withoutLoneCommas(src)
	}
	v, err := hujson.Parse(src)
	if err != nil {
		p.syntax(err)
		return value{}, false
	}
	return p.convert(&v), true
}

// syntax reports the HuJSON parser's one error at its place.
func (p *parser) syntax(err error) {
	var line, col int
	msg := err.Error()
	if m := syntaxError.FindString(msg); m != "" {
		_, _ = fmt.Sscanf(m, "hujson: line %d, column %d: ", &line, &col)
		msg = msg[len(m):]
	}
	off := len(p.src)
	if line >= 1 && line <= len(p.lines) {
		off = min(p.lines[line-1]+max(col-1, 0), len(p.src))
	}
	if u := errors.Unwrap(err); u != nil && strings.Contains(msg, "unexpected EOF") {
		msg = "file ends too early: " + strings.TrimSuffix(msg, ": unexpected EOF")
	}
	p.fail(off, ClassSyntax, "", "%s", msg)
}

// tooDeep finds the first bracket nested deeper than MaxDepth. It lexes as the parser does as long as the file is
// valid, and the parser stops where it no longer is.
func tooDeep(b []byte) (off int, deep bool) {
	depth := 0
	for i := 0; i < len(b); i = next(b, i) {
		switch b[i] {
		case '{', '[':
			if depth++; depth > MaxDepth {
				return i, true
			}
		case '}', ']':
			depth--
		}
	}
	return 0, false
}

// next is where the token after the one at i starts: past a string or comment, and one byte on otherwise.
func next(b []byte, i int) int {
	switch {
	case b[i] == '"':
		for i++; i < len(b) && b[i] != '"'; i++ {
			if b[i] == '\\' {
				i++
			}
		}
	case bytes.HasPrefix(b[i:], []byte("//")):
		n := bytes.IndexByte(b[i:], '\n')
		if n < 0 {
			return len(b)
		}
		i += n
	case bytes.HasPrefix(b[i:], []byte("/*")):
		n := bytes.Index(b[i+2:], []byte("*/"))
		if n < 0 {
			return len(b)
		}
		i += 2 + n + 1
	}
	return i + 1
}

// withoutLoneCommas blanks the comma of "[,]" and "{,}". It is no HuJSON, but tools that add a trailing comma to
// every container write it; only what is read as another service's file is treated so kindly.
func withoutLoneCommas(b []byte) []byte {
	out := b
	open, comma := false, -1 // just after a bracket that opens; the comma met since
	for i := 0; i < len(b); i = next(b, i) {
		switch c := b[i]; {
		case c == ' ' || c == '\t' || c == '\r' || c == '\n' || c == '/':
		case c == '[' || c == '{':
			open, comma = true, -1
		case c == ',' && open && comma < 0:
			comma = i
		case (c == ']' || c == '}') && open && comma >= 0:
			if &out[0] == &b[0] {
				out = bytes.Clone(b)
			}
			out[comma] = ' '
			open = false
		default:
			open = false
		}
	}
	return out
}

// convert keeps of a HuJSON value what it means and where it is, and reports duplicate names.
func (p *parser) convert(h *hujson.Value) value {
	v := value{off: h.StartOffset, kind: byte(h.Value.Kind())}
	switch x := h.Value.(type) {
	case hujson.Literal:
		v.str = string(x)
		if v.kind == '"' {
			v.str = x.String()
		}
	case *hujson.Array:
		v.elems = make([]value, len(x.Elements))
		for i := range x.Elements {
			v.elems[i] = p.convert(&x.Elements[i])
		}
	case *hujson.Object:
		seen := make(map[string]int, len(x.Members))
		for i := range x.Members {
			f := field{name: p.convert(&x.Members[i].Name), val: p.convert(&x.Members[i].Value)}
			if first, dup := seen[f.name.str]; dup {
				p.fail(f.name.off, ClassSyntax, "keep one of the two", "%q is here twice; the first is on line %d", f.name.str, p.pos(first).Line)
				continue
			}
			seen[f.name.str] = f.name.off
			v.fields = append(v.fields, f)
		}
	}
	return v
}

var kindNames = map[byte]string{'{': "an object {…}", '[': "a list […]", '"': "a string", '0': "a number", 't': "true", 'f': "false", 'n': "null"}

// want reports whether v is of the kind, and fails if not. null counts as absent: it is no error, and reports false.
func (p *parser) want(v value, kind byte, what string) bool {
	if v.shape != nil {
		v.shape.kind = kind
		return true
	}
	if v.kind == kind {
		return true
	}
	if v.kind != 'n' {
		p.fail(v.off, ClassSyntax, "", "%s must be %s, not %s", what, kindNames[kind], kindNames[v.kind])
	}
	return false
}

// object hands each field of v to its reader. Names match in any case; aliases maps an old name to the one it
// stands for. Unknown names, and names given twice in different spellings, are errors.
func (p *parser) object(v value, what string, readers map[string]func(value), aliases map[string]string) {
	if !p.want(v, '{', what) {
		if v.kind == 'n' {
			p.fail(v.off, ClassSyntax, "", "%s must be an object {…}, not null", what)
		}
		return
	}
	if v.shape != nil {
		v.shape.describe(readers, aliases)
		return
	}
	seen := map[string]string{}
	for _, f := range v.fields {
		name := canonical(f.name.str, readers, aliases)
		if name == "" {
			hint := p.near(f.name.str, names(readers))
			if strings.HasPrefix(f.name.str, "#") {
				hint = "write notes as // comments"
			}
			p.fail(f.name.off, ClassUnknownField, hint, "%s has no field %q", what, f.name.str)
			continue
		}
		if other, dup := seen[name]; dup {
			p.fail(f.name.off, ClassSyntax, "keep one of the two", "%q and %q are the same field", other, f.name.str)
			continue
		}
		seen[name] = f.name.str
		if f.val.kind != 'n' {
			readers[name](f.val)
		}
	}
}

func canonical(name string, readers map[string]func(value), aliases map[string]string) string {
	if _, ok := readers[name]; ok {
		return name
	}
	for k := range readers {
		if strings.EqualFold(k, name) {
			return k
		}
	}
	for old, k := range aliases {
		if strings.EqualFold(old, name) {
			return k
		}
	}
	return ""
}

// list hands each string of the array v to read, trimmed of white space round it.
func (p *parser) list(v value, what string, read func(off int, s string)) {
	if !p.want(v, '[', what) {
		return
	}
	for _, e := range v.elems {
		if e.shape != nil {
			e.shape.kind = '"'
			return
		}
		if e.kind != '"' {
			p.fail(e.off, ClassSyntax, "", "%s must hold strings, not %s", what, kindNames[e.kind])
			continue
		}
		read(e.off, strings.TrimSpace(e.str))
	}
}

// text returns the string v.
func (p *parser) text(v value, what string) (string, bool) {
	if !p.want(v, '"', what) || v.shape != nil {
		return "", false
	}
	return v.str, true
}

// near is didYouMean for an error about to be recorded; it costs nothing once there are too many.
func (p *parser) near(name string, known []string) string {
	if len(p.errs) >= maxErrors {
		return ""
	}
	return didYouMean(name, known)
}

// didYouMean is a hint with the nearest of the names known, or none when none is near.
func didYouMean(name string, known []string) string {
	if len(name) > 100 {
		return ""
	}
	slices.Sort(known)
	best, at := "", 1 // less than this many edits
	if len(name) >= 3 {
		at = max(2, len(name)/3+1)
	}
	for _, k := range known {
		if d := distance(strings.ToLower(name), strings.ToLower(k), at); d < at {
			best, at = k, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("did you mean %q?", best)
}

// distance is the number of edits (Damerau–Levenshtein, adjacent swaps only) between a and b, or limit if not less.
func distance(a, b string, limit int) int {
	if d := len(a) - len(b); d >= limit || -d >= limit {
		return limit
	}
	prev2, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev, cur = prev, cur, prev2
	}
	return min(prev[len(b)], limit)
}

func names[V any](m map[string]V) []string {
	ks := make([]string, 0, len(m))
	for k := range m {
		ks = append(ks, k)
	}
	slices.Sort(ks)
	return ks
}
