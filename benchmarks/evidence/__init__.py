"""Evidence: what is to be measured is written down before; a record a student; pages that follow from the records."""
