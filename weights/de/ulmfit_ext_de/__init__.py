"German language models for ulmfit_ext: the files lie in this folder, and `README.md` tells of them"
