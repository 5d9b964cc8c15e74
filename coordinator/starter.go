package coordinator

// StarterPolicy is a commented policy file for a new mesh: login's own devices reach each other, and nothing else.
func StarterPolicy(login string) string { panic("todo") }
