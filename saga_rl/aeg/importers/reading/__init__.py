"""From files as they are to records with a place: folders, compression, layouts, damage, strict access to fields.
Imports no importer."""
