package store

// OpenSQLite opens the store in the file at path, and creates it (mode 0600) if it is not there.
func OpenSQLite(path string) (Store, error) { panic("todo") }
