package main

import (
	"os"
	"strings"
	"testing"
	"time"
)

// A section goes to its place, and what is around it stays to the byte.
func TestReplace(t *testing.T) {
	begin, end := marks("x")
	beginY, endY := marks("y")
	for _, tt := range []struct{ name, doc, want string }{
		{"between others", "a\n" + begin + "old\n" + end + beginY + "y\n" + endY + "b\n", "a\n" + begin + "\nnew\n\n" + end + beginY + "y\n" + endY + "b\n"},
		{"empty", begin + end, begin + "\nnew\n\n" + end},
		{"no place", "a\n" + beginY + endY, ""},
		{"no end", begin + "a\n", ""},
		{"an end of another", begin + endY, ""},
		{"two places", begin + end + begin + end, ""},
	} {
		got, err := replace(tt.doc, "x", "\nnew\n")
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%s: %q, %v, want %q", tt.name, got, err, tt.want)
		}
		if again, err := replace(got, "x", "new\n"); tt.want != "" && (err != nil || again != got) {
			t.Errorf("%s, once more: %q, %v", tt.name, again, err)
		}
	}
}

// Each section has a place in the document, cases of its own, and events that there are.
func TestSections(t *testing.T) {
	if err := places("../../docs/paths.md", sections()); err != nil {
		t.Error(err)
	}
	whose := map[string]string{}
	for _, s := range sections() {
		if len(s.cases) == 0 {
			t.Errorf("section %s has no cases", s.name)
		}
		for _, c := range s.cases {
			if other := whose[c.name()]; other != "" {
				t.Errorf("%s is in sections %s and %s", c.name(), other, s.name)
			}
			whose[c.name()] = s.name
			if _, err := eventNamed(c.event); c.event != "" && err != nil {
				t.Error(err)
			}
		}
	}
	if _, err := chosen("events,nonsense"); err == nil || !strings.Contains(err.Error(), "matrix, kinds, events") {
		t.Errorf("a section that is not there: %v", err)
	}
	if list, err := chosen("more,events"); err != nil || len(list) != 2 || list[0].name != "more" || list[1].name != "events" {
		t.Errorf("more,events: %v, %v", list, err)
	}
}

// A section says when it was measured and of which cases, and has a row for each result.
func TestSectionText(t *testing.T) {
	c := conditions{pattern: "easy/easy", parallel: 3, load: "1.00 2.00 3.00", at: time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)}
	for _, s := range sections() {
		one := s.cases[0]
		text := s.text([]result{{Name: one.name(), First: 123 * time.Millisecond, DirectA: 45 * time.Millisecond, DirectB: 67 * time.Millisecond}}, c)
		for _, want := range []string{"from 2026-05-04 03:02 UTC on", "match `easy/easy`", "3 at once", "1.00 2.00 3.00", one.a} {
			if !strings.Contains(text, want) {
				t.Errorf("section %s lacks %q:\n%s", s.name, want, text)
			}
		}
		if one.event == "" && !strings.Contains(text, "67") || one.event != "" && !strings.Contains(text, one.a+"/"+one.b+" |") {
			t.Errorf("section %s has no row of %s:\n%s", s.name, one.name(), text)
		}
		failed := s.text([]result{{Name: one.name(), Err: "it broke"}}, c)
		if !strings.Contains(failed, "failed") {
			t.Errorf("section %s does not tell of a failure:\n%s", s.name, failed)
		}
	}
}

// A place that is missing shows before anything is measured.
func TestPlaces(t *testing.T) {
	file := t.TempDir() + "/paths.md"
	if err := places(file, sections()); !os.IsNotExist(err) {
		t.Errorf("no file: %v", err)
	}
	if err := os.WriteFile(file, []byte("# Paths\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := places(file, sections()); err == nil || !strings.Contains(err.Error(), "no place for section matrix") {
		t.Errorf("no marks: %v", err)
	}
}
