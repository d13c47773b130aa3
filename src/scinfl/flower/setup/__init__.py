"""Before a federation starts: the job, the folders of operator and sites, templates."""
